"""Whose request it is: a team's members share its DAG, workspace, quota and servers; everybody else shares the common ones.

A team is in the DAG's name and not in a run's conf: who may trigger a run must not choose whose data it sees.
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
    """One team's part of the API, or the common one.

    Attributes:
        quota: Unfinished requests of the tenant at once, uploads that are coming in included.
        limit: Limit of all tenants together.
        keep_days: A request's files are removed that long after it was made.
        upload_mib: Limit in MiB of one request's body.
        free_mib: What an upload must leave free on the disk.
        servers: Addresses of predictor servers that serve this very workspace.
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
        """The DAG whose runs are the tenant's requests."""
        return dag_id_of(self.team)

    @property
    def requests(self) -> Path:
        """Folder of the tenant's requests."""
        return requests_folder(self.workspace)


def dag_id_of(team: str | None) -> str:
    """Name of a team's DAG; of the common one without a team."""
    return f"{DAG_ID}_{team}" if team else DAG_ID


def requests_folder(workspace: Workspace) -> Path:
    """Where a workspace's requests are: below the first of its output roots, where jobs may read and write."""
    return Path(workspace.output_roots[0]) / "requests"


def load_tenant(team: str | None) -> Tenant:
    """The tenant of a team, or the common one.

    Raises:
        ConfigError: An option of section [nnunet] or the team's file is wrong.
    """
    section = section_options()
    numbers = {name.removeprefix("predictions_"): _at_least_one(name, section[name]) for name in _NUMBERS}
    servers = path_list(section["predictor_servers"], separators=",")
    if team:
        own = load_teams().get(team).predictions
        numbers["quota"] = own.quota or numbers["quota"]
        servers = tuple(own.servers)  # the section's serve another workspace: never a fallback
    for address in servers:
        check_server(address)
    return Tenant(team=team, workspace=resolve_config(team=team).workspace, servers=servers, **numbers)


def tenant_of(user: str) -> Tenant:
    """The tenant of a user's name.

    Raises:
        ConfigError: A setting is wrong, or some team's file is, so that nobody can say whose member the user is.
    """
    teams = load_teams()
    for name, team in teams.configs.items():
        if user in team.predictions.members:
            return load_tenant(name)
    if teams.errors:
        raise ConfigError("\n".join(teams.errors.values()))
    return load_tenant(None)


def all_tenants(on_error: Callable[[str], object] | None = None) -> list[Tenant]:
    """The common tenant, then every team's whose file is right.

    Args:
        on_error: Called with what is wrong with one tenant, which is then left out.

    Raises:
        ConfigError: A setting is wrong, where nobody is told otherwise.
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
    """Refuse an address that would send images over a network in the clear.

    Raises:
        ConfigError: It is none of ``unix:/path``, http on loopback, or https.
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
