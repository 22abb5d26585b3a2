"""``airflow nnunet sync-pools`` creates the pools of ``include/pools.json`` and of the teams in Airflow."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_nnunet.cli.command import command
from airflow_nnunet.jobs.jobs_command import run_jobs_command
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.project_files import project_files
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError

AUTO = "auto"
_FIELDS = ("slots", "description", "include_deferred")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Describes one entry of a pools file.

    Attributes:
        slots: A number, or ``auto`` for the number of GPUs, or ``cpu_slots`` without GPUs.
        include_deferred: Whether a deferred task keeps its slot. Otherwise every job would start at once.
    """

    name: str
    slots: int | str
    description: str
    include_deferred: bool = True

    def __post_init__(self) -> None:
        if self.slots != AUTO and (not isinstance(self.slots, int) or isinstance(self.slots, bool) or self.slots < 0):
            raise ConfigError(
                where=f"pool {self.name!r}:", field="slots", value=self.slots, problem="must be an integer of 0 or more, or 'auto'"
            )
        if not isinstance(self.description, str) or not self.description.strip():
            raise ConfigError(
                where=f"pool {self.name!r}:", field="description", value=self.description, problem="must be a string that is not empty"
            )
        if not isinstance(self.include_deferred, bool):
            raise ConfigError(
                where=f"pool {self.name!r}:", field="include_deferred", value=self.include_deferred, problem="must be true or false"
            )


def read_pools(path: Path) -> list[PoolSpec]:
    """Read a file in the form of ``airflow pools export``, where slots may also be ``auto``.

    Raises:
        ConfigError: The file or an entry cannot be used; the message names it.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            field="path", value=str(path), problem="no such file", fix="name a pools file, such as the project's include/pools.json"
        ) from error
    except ValueError as error:
        raise ConfigError(field="path", value=str(path), problem=f"not JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(entry, dict) for entry in data.values()):
        raise ConfigError(
            field="path", value=str(path), problem='must be an object such as {"gpu": {"slots": "auto", "description": "..."}}'
        )
    pools = []
    for name, entry in data.items():
        unknown = sorted(set(entry) - {*_FIELDS, "name", "team_name"})
        missing = [field for field in ("slots", "description") if field not in entry]
        if unknown or missing:
            what = f"unknown field {unknown[0]!r}" if unknown else f"field {missing[0]!r} is missing"
            raise ConfigError(f"pool {name!r} in {path}: {what}; known: {', '.join(_FIELDS)}")
        pools.append(PoolSpec(name=name, **{field: entry[field] for field in _FIELDS if field in entry}))
    return pools


def default_path() -> Path:
    """Return the first existing ``include/pools.json``: beside ``plugins``, in AIRFLOW_HOME, or the package's own."""
    from airflow.configuration import conf

    folders = (
        Path(conf.get_mandatory_value("core", "plugins_folder")).parent,
        Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser(),
    )
    candidates = [folder / "include" / "pools.json" for folder in (*folders, project_files())]
    return next((path for path in candidates if path.is_file()), candidates[-1])


def probe_host(config: NnunetConfig) -> dict[str, Any]:
    """Return GPUs, memory and versions of this host, as seen by the interpreter that runs the jobs.

    Raises:
        ConfigError: The interpreter cannot run ``nnunet_jobs``.
    """
    try:
        done = run_jobs_command(config.python, "probe", capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ConfigError(where="[nnunet]", field="python", value=config.python, problem=f"cannot run nnunet_jobs: {last[0]}")
        data: dict[str, Any] = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError(where="[nnunet]", field="python", value=config.python, problem=f"cannot run nnunet_jobs: {error}") from error
    return data


def automatic_slots(config: NnunetConfig, host: dict[str, Any]) -> int:
    """Return the slots of a pool with ``auto``: the number of GPUs, or the CPU slots without GPUs."""
    return len(host["gpus"]) or config.workspace.cpu_slots


def team_pools(path: Path) -> list[PoolSpec]:
    """Return the teams' own pools.

    Raises:
        ConfigError: A team's file is wrong, or the pools file ``path`` has a pool with a team's name.
    """
    teams = load_teams()
    if teams.errors:
        raise ConfigError("\n".join(teams.errors.values()))
    common = {pool.name for pool in read_pools(path)}
    for name, team in teams.configs.items():
        if team.pool_name in common:
            raise ConfigError(f"pool {team.pool_name!r}: is in {path} and of team {name}; give one of them another name")
    return [
        PoolSpec(name=team.pool_name, slots=team.pool.slots, description=team.description or f"Jobs of team {name} in flight.")
        for name, team in teams.configs.items()
    ]


def sync_pools(path: Path, config: NnunetConfig) -> list[tuple[str, int]]:
    """Create or update the pools of the file and of the teams in Airflow's database. Other pools are not changed."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    pools = [*read_pools(path), *team_pools(path)]
    automatic = automatic_slots(config, probe_host(config)) if any(pool.slots == AUTO for pool in pools) else 0
    done = []
    with create_session() as session:
        for pool in pools:
            slots = automatic if isinstance(pool.slots, str) else pool.slots
            Pool.create_or_update_pool(
                name=pool.name, slots=slots, description=pool.description, include_deferred=pool.include_deferred, session=session
            )
            done.append((pool.name, slots))
    return done


@command
def sync_pools_command(args: argparse.Namespace) -> int:
    """Sync the pools and print one line for each of them."""
    path = Path(args.path) if args.path else default_path()
    for name, slots in sync_pools(path, resolve_config(args.conn_id)):
        print(f"pool {name}: {slots} slots")
    return Exit.DONE
