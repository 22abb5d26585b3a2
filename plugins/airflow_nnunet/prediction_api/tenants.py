"""Finds the tenant of a user. A team's members share its DAG, workspace, quota and servers; all others share common
ones.

A team is part of the DAG's name and not of a run's conf, so that a person who triggers a run cannot choose another
team.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from airflow_nnunet.prediction_api import DAG_ID
from airflow_nnunet.settings.config import number, path_list, section_options
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.http.loopback import is_loopback
from nnunet_jobs.contract.storage.workspace import Workspace

_NUMBERS = ("predictions_quota", "predictions_limit", "predictions_keep_days", "predictions_upload_mib", "predictions_free_mib")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Describes one team's part of the API, or the common part.

    Attributes:
        quota: Limit on unfinished requests of the tenant, with unfinished uploads.
        limit: Limit on unfinished requests of all tenants together.
        keep_days: Number of days after which a request's files are removed.
        upload_mib: Limit on one request's body in MiB.
        free_mib: Disk space in MiB that an upload must leave free.
        servers: Addresses of predictor servers that serve this workspace.
    """

    team: str | None
    workspace: Workspace
    quota: int
    limit: int
    keep_days: int
    upload_mib: int
    free_mib: int = 1024
    servers: tuple[str, ...] = ()

    @property
    def dag_id(self) -> str:
        """Return the DAG whose runs are the tenant's requests."""
        return dag_id_of(self.team)

    @property
    def requests(self) -> Path:
        """Return the folder of the tenant's requests."""
        return requests_folder(self.workspace)


def dag_id_of(team: str | None) -> str:
    """Return the name of a team's DAG, or of the common one without a team."""
    return f"{DAG_ID}_{team}" if team else DAG_ID


def requests_folder(workspace: Workspace) -> Path:
    """Return the folder of a workspace's requests, below its first output root, where jobs may read and write."""
    return Path(workspace.output_roots[0]) / "requests"


def load_tenant(team: str | None) -> Tenant:
    """Return the tenant of a team, or the common one.

    Raises:
        ConfigError: An option of section [nnunet] or the team's file is wrong.
    """
    section = section_options()
    numbers = {name.removeprefix("predictions_"): _at_least_one(name, section[name]) for name in _NUMBERS}
    servers = path_list(section["predictor_servers"], separators=",")
    if team:
        own = load_teams().get(team).predictions
        numbers["quota"] = own.quota or numbers["quota"]
        servers = tuple(own.servers)  # the section's servers serve another workspace and are never used
    for address in servers:
        check_server(address)
    return Tenant(team=team, workspace=resolve_config(team=team).workspace, servers=servers, **numbers)


def tenant_of(user: str) -> Tenant:
    """Return the tenant of a user's name.

    Raises:
        ConfigError: A setting or a team's file is wrong. The team of the user cannot be known then.
    """
    teams = load_teams()
    for name, team in teams.configs.items():
        if user in team.predictions.members:
            return load_tenant(name)
    if teams.errors:
        raise ConfigError("\n".join(teams.errors.values()))
    return load_tenant(None)


def all_tenants(on_error: Callable[[str], object] | None = None) -> list[Tenant]:
    """Return the common tenant, then one for each team with a valid file.

    Args:
        on_error: Called with the error of a tenant, which is then left out.

    Raises:
        ConfigError: A setting is wrong, and there is no ``on_error``.
    """
    found = []
    for name in (None, *load_teams().configs):
        try:
            found.append(load_tenant(name))
        except ConfigError as error:
            if on_error is None:
                raise
            on_error(str(error))
    return found


def check_server(address: str) -> None:
    """Refuse an address to which images would be sent unencrypted over a network.

    Raises:
        ConfigError: The address is not ``unix:/path``, http on loopback, or https.
    """
    url = urlsplit(address)
    if url.scheme == "unix" and url.path.startswith("/"):
        return
    if url.scheme == "https" and url.hostname:
        return
    if url.scheme == "http" and url.hostname and is_loopback(url.hostname):
        return
    raise ConfigError(
        where="[nnunet]",
        field="predictor_servers",
        problem=f"{address!r}: use unix:/path.sock, http://127.0.0.1:8600, or https for another host",
    )


def _at_least_one(name: str, value: object) -> int:
    found: int = number(name, value, int)
    if found < 1:
        raise ConfigError(where="[nnunet]", field=name, value=value, problem="must be 1 or more")
    return found
