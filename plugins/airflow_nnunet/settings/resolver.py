"""Which settings hold for a task: those of section [nnunet], those of a connection over them, or those of a team."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_nnunet.settings.config import NnunetConfig, section_options
from airflow_nnunet.settings.teams import ROOTS, load_teams
from nnunet_jobs.contract.failure import ConfigError


def resolve_config(conn_id: str | None = None, *, team: str | None = None) -> NnunetConfig:
    """Read section [nnunet], then let a connection of type ``nnunet`` override single options, or take a team's roots.

    Args:
        conn_id: Connection of type ``nnunet``; none if empty.
        team: Name of a file in ``include/teams``; none if empty.

    Raises:
        ConfigError: An option has a value that cannot be used, the connection has an unknown one, there is no such
            team, or both a connection and a team are named.
    """
    if team:
        if conn_id:
            raise ConfigError(
                field="nnunet_conn_id", value=conn_id, problem=f"the workspace of team {team} is in its own file", fix="leave this empty"
            )
        return _of_team(team)
    overrides: Mapping[str, Any] = {}
    if conn_id:
        from airflow_nnunet.settings.hook import NnunetHook

        overrides = NnunetHook(conn_id).overrides()
    return NnunetConfig.from_options({**section_options(), **overrides})


def job_roots() -> list[str]:
    """Where job folders are: of section [nnunet], then of every team."""
    return list(owned_job_roots())


def owned_job_roots() -> dict[str, str | None]:
    """Where job folders are, with the team whose they are; None for those of section [nnunet]."""
    found: dict[str, str | None] = {resolve_config().workspace.jobs: None}
    for name, team in load_teams().configs.items():
        found[team.nnunet.roots().jobs] = name
    return found


def _of_team(team: str) -> NnunetConfig:
    """The section without its roots, the team's options over it, and the host's one lease ledger: all teams share its GPUs."""
    section = section_options()
    options = load_teams().get(team).options()
    inherited = {name: value for name, value in section.items() if name not in ROOTS}
    return NnunetConfig.from_options({**inherited, **options, "leases": NnunetConfig.from_options(section).workspace.leases})
