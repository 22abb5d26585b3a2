"""Finds the settings of a task: those of section [nnunet], overridden by a connection, or those of a team."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_nnunet.settings.config import NnunetConfig, section_options
from airflow_nnunet.settings.teams import ROOTS, load_teams
from nnunet_jobs.contract.failure import ConfigError


def resolve_config(conn_id: str | None = None, *, team: str | None = None) -> NnunetConfig:
    """Read section [nnunet]; a connection of type ``nnunet`` overrides single options, a team replaces the roots.

    Args:
        conn_id: Connection of type ``nnunet``; not used if empty.
        team: Name of a file in ``include/teams``; not used if empty.

    Raises:
        ConfigError: An option's value cannot be used, the connection has an unknown option, the team does not exist,
            or both a connection and a team are named.
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
    """Return the folders of jobs: the one of section [nnunet], then the one of every team."""
    return list(owned_job_roots())


def owned_job_roots() -> dict[str, str | None]:
    """Return the folders of jobs, each with its team, or None for the one of section [nnunet]."""
    found: dict[str, str | None] = {resolve_config().workspace.jobs: None}
    for name, team in load_teams().configs.items():
        found[team.nnunet.roots().jobs] = name
    return found


def _of_team(team: str) -> NnunetConfig:
    """Return a team's settings. All teams share the GPUs of a host, so they also share its lease ledger."""
    section = section_options()
    options = load_teams().get(team).options()
    inherited = {name: value for name, value in section.items() if name not in ROOTS}
    return NnunetConfig.from_options({**inherited, **options, "leases": NnunetConfig.from_options(section).workspace.leases})
