"""Reads ``include/teams/*.yaml``. Each file describes a team: its pool, queue, priority and roots.

These are files beside the DAGs and not connections, so that only people who may change DAGs can change them, and every
worker reads the same ones.

Exceptions::

    ConfigError
    └── TeamConfigError    a team's file is wrong
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from airflow_nnunet.settings.airflow_names import Priority, QueueName
from airflow_nnunet.settings.pool_names import COMMON_POOLS
from airflow_nnunet.settings.yaml_files import Section, WrongField, line_of, read_model, yaml_files
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import TEAM
from nnunet_jobs.contract.storage.permissions import explain_permission_error
from nnunet_jobs.contract.storage.workspace import WRITTEN_ROOTS, Workspace

ROOTS = ("workspace", *WRITTEN_ROOTS, "input_roots", "output_roots")
"""Options that a team never inherits from section [nnunet]. By default they are below its workspace, or empty."""


class TeamConfigError(ConfigError):
    """A team's file is wrong. The message names file, line, field, value and fix."""


class PoolSection(Section):
    """The team's own Airflow pool, which limits how many of its trainings and predictions run at once."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.\-]{1,100}$", description="The team's name when empty.")
    slots: int | Literal["auto"] = Field(
        description="A number, or `auto`: one for each GPU that `sync-pools` sees, or `cpu_slots` without GPUs. All teams together "
        "may have more slots than there are GPUs. Jobs then wait on the host, where teams take turns."
    )

    @model_validator(mode="after")
    def _check(self) -> PoolSection:
        if isinstance(self.slots, int) and self.slots < 1:
            raise WrongField(field="pool.slots", value=self.slots, problem="must be 1 or more, or none of the team's jobs ever run")
        if self.name in COMMON_POOLS:
            raise WrongField(field="pool.name", value=self.name, problem="is shared by all teams", fix="choose another, or leave it empty")
        return self


class OptionsSection(Section):
    """The team's own options of section `[nnunet]`. Roots that are not named here are below the team's `workspace`;
    the section's are not used. All teams share a host's GPUs, so the lease ledger and `cpu_slots` cannot be set."""

    workspace: str = Field(description="Folder of the team's nnUNet_raw, nnUNet_preprocessed, nnUNet_results, jobs and predictions.")
    raw: str | None = Field(default=None, description="nnUNet_raw, when it is not in the workspace folder.")
    preprocessed: str | None = Field(default=None, description="nnUNet_preprocessed, when it is not in the workspace folder.")
    results: str | None = Field(default=None, description="nnUNet_results, when it is not in the workspace folder.")
    jobs: str | None = Field(default=None, description="Job folders, when they are not in the workspace folder.")
    input_roots: list[str] = Field(default=[], description="Folders, beside its own workspace, below which the team may name input.")
    output_roots: list[str] = Field(
        default=[], description="Folders below which the team may name output; the folder predictions of its workspace when empty."
    )
    trainer_paths: list[str] | None = Field(default=None, description="Folders with trainer classes, instead of the section's.")
    sharing: Literal["private", "group", "group_others_read"] | None = Field(
        default=None, description="Who may use the files that the team's jobs write, instead of the section's."
    )
    backend: str | None = Field(default=None, description="Where the team's jobs run, instead of the section's.")
    backend_options: dict[str, Any] | None = Field(default=None, description="The backend's options, instead of the section's.")
    python: str | None = Field(default=None, description="Interpreter of the team's jobs, instead of the section's.")

    @model_validator(mode="after")
    def _check(self) -> OptionsSection:
        for name in ROOTS:
            value = getattr(self, name)
            for path in value if isinstance(value, list) else [value] if value is not None else []:
                if not os.path.isabs(path):
                    raise WrongField(field=f"nnunet.{name}", value=path, problem="must be an absolute path")
        return self

    def roots(self) -> Workspace:
        """Return the team's roots. The folder of leases in the result is not used."""
        return Workspace.below(self.workspace, **{name: getattr(self, name) for name in ROOTS if name != "workspace"})


class PredictionsSection(Section):
    """Who uses the prediction API, `/nnunet-api`, as this team, and how much. Users without a team share one space."""

    members: list[str] = Field(
        default=[],
        description="User names whose requests belong to the team. Only they see the team's requests and job pages, all of them.",
    )
    quota: int | None = Field(default=None, ge=1, description="Most unfinished requests at once, instead of option `predictions_quota`.")
    servers: list[str] = Field(
        default=[],
        description="Addresses of predictor servers of the team's workspace; the section's servers serve another one.",
    )


class TeamConfig(Section):
    """One file of ``include/teams``. The file's name is the team's name."""

    description: str | None = Field(default=None, description="One line for the pool list.")
    pool: PoolSection
    queue: QueueName | None = Field(
        default=None,
        description="Queue of trainings and predictions, for Celery workers that listen to some; Airflow's own when empty.",
    )
    priority: Priority = Field(default=1, description="Airflow priority weight of the team's trainings and predictions.")
    nnunet: OptionsSection
    predictions: PredictionsSection = PredictionsSection()

    @property
    def pool_name(self) -> str:
        """Return the name of the team's pool."""
        return str(self.pool.name)  # load_teams gives every pool a name

    def dataset_defaults(self) -> dict[str, Any]:
        """Return the values of the fields that a dataset file of the team leaves out."""
        return {"pool": self.pool_name, "queue": self.queue, "priority": self.priority}

    def options(self) -> dict[str, Any]:
        """Return the options of section [nnunet] that the team names."""
        return self.nnunet.model_dump(exclude_none=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teams:
    """Holds all teams of a folder by name, and one message for each file that is wrong."""

    folder: Path
    configs: Mapping[str, TeamConfig]
    errors: Mapping[str, str]

    def get(self, name: str) -> TeamConfig:
        """Return the team of that name.

        Raises:
            ConfigError: There is no such team, or its file is wrong.
        """
        if name in self.errors:
            raise ConfigError(field="team", value=name, problem=f"its file is wrong: {self.errors[name]}")
        if name not in self.configs:
            known = ", ".join(self.configs) or "none"
            raise ConfigError(
                field="team",
                value=name,
                problem=f"{self.folder / name}.yaml is missing",
                fix=f"add it, or name a team that is there: {known}",
            )
        return self.configs[name]

    def task_fields(self, team: str, given: Mapping[str, Any], *, common_pool: str | None) -> dict[str, Any]:
        """Return the team's pool, queue and priority for a task, as far as ``given`` (with default arguments) has none.

        Args:
            common_pool: Pool of such tasks without a team; None for steps that use no GPU and get none of these fields.

        Raises:
            ConfigError: The team does not exist, the pool belongs to another team, or a connection is named too.
        """
        config = self.get(team)
        if conn_id := given.get("nnunet_conn_id"):
            raise ConfigError(
                field="nnunet_conn_id", value=conn_id, problem=f"the workspace of team {team} is in its own file", fix="leave this empty"
            )
        if common_pool is None:
            return {}
        if "pool" in given and given["pool"] != common_pool:
            self.check_pool(given["pool"], team)
        fields = {"queue": config.queue, "priority_weight": config.priority}
        fields = {name: value for name, value in fields.items() if value is not None and name not in given}
        return fields if given.get("pool", common_pool) != common_pool else {**fields, "pool": config.pool_name}

    def check_pool(self, pool: str, team: str | None) -> None:
        """Refuse another team's pool; a team is also refused the common pools.

        Raises:
            ConfigError: Jobs of ``team`` may not use the pool.
        """
        owner = next((name for name, config in self.configs.items() if config.pool_name == pool), None)
        if owner not in (None, team):
            fix = "name another pool" if team else f"add team: {owner}, or name another pool"
            raise ConfigError(field="pool", value=pool, problem=f"belongs to team {owner}", fix=fix)
        if team and pool in COMMON_POOLS:
            raise ConfigError(
                field="pool",
                value=pool,
                problem="is shared by all teams, so the team's slots do not count there",
                fix="remove this field; the team has a pool",
            )


def teams_folder() -> Path:
    """Return the folder of team files: option ``teams`` of [nnunet], or ``include/teams`` beside the DAGs folder."""
    from airflow.sdk.configuration import conf

    chosen = conf.get("nnunet", "teams", fallback="")
    return Path(chosen) if chosen else Path(conf.get("core", "dags_folder")).parent / "include" / "teams"


def load_teams(folder: Path | None = None) -> Teams:
    """Read every team of the folder, or of the site's folder if None. Unchanged files are not read again.

    Raises:
        ConfigError: This user may not read the folder.
    """
    folder = folder or teams_folder()
    seen = []
    try:
        for path in yaml_files(folder / name for name in os.listdir(folder)):
            status = path.stat()
            seen.append((path, status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        pass  # without the folder there are no teams
    except PermissionError as error:
        raise ConfigError(where="[nnunet]", field="teams", problem=explain_permission_error(error)) from error
    return _load(folder, tuple(seen))


@functools.lru_cache(maxsize=8)
def _load(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> Teams:
    configs: dict[str, TeamConfig] = {}
    errors: dict[str, str] = {}
    for path, _, _ in files:
        try:
            if path.stem in configs or path.stem in errors:
                raise TeamConfigError(f"{path}: team {path.stem} has two files with different endings; remove one of them")
            configs[path.stem] = _load_team(path, configs)
        except TeamConfigError as error:
            errors[path.stem] = str(error)
    return Teams(folder=folder, configs=configs, errors=errors)


def _load_team(path: Path, others: Mapping[str, TeamConfig]) -> TeamConfig:
    if not TEAM.fullmatch(path.stem):
        raise TeamConfigError(f"{path}: a team is named after its file: use 1 to 64 of a-z, 0-9, '_', '-', starting with a letter or digit")
    team = read_model(path, TeamConfig, error=TeamConfigError, hint="with 'pool:' and 'nnunet:'; see include/teams/README.md")
    name = team.pool.name or path.stem
    for other, config in others.items():
        if config.pool_name == name:
            raise TeamConfigError(
                f"{path}:{line_of(path, 'pool', 'name')}: pool.name={name!r}: team {other} has it already; choose another name"
            )
        for member in sorted(set(team.predictions.members) & set(config.predictions.members)):
            where = f"{path}:{line_of(path, 'predictions', 'members')}: predictions.members={member!r}"
            raise TeamConfigError(f"{where}: is a member of team {other} already; a user posts as one team")
        for field, message in _overlaps(team.nnunet.roots(), config.nnunet.roots(), other):
            raise TeamConfigError(f"{path}:{line_of(path, 'nnunet', field)}: nnunet.{field}={message}")
    return team.model_copy(update={"pool": team.pool.model_copy(update={"name": name})})


def _overlaps(mine: Workspace, theirs: Workspace, other: str) -> Iterator[tuple[str, str]]:
    """Yield the roots with which a team could write into another team's folders, or read more than it is given."""
    for field in (*WRITTEN_ROOTS, "output_roots", "input_roots"):
        for path in _paths(mine, field):
            fields = WRITTEN_ROOTS if field == "input_roots" else (*WRITTEN_ROOTS, "output_roots", "input_roots")
            for foreign in fields:
                for their in _paths(theirs, foreign):
                    # An input root may be another team's output root, which is how one team passes results to another.
                    given = field == "output_roots" and foreign == "input_roots"
                    if not given and (_below(path, their) or _below(their, path)):
                        yield field, f"{path!r}: overlaps {their} ({foreign} of team {other}); choose a folder of the team's own"


def _paths(workspace: Workspace, field: str) -> tuple[str, ...]:
    value = getattr(workspace, field)
    return (value,) if isinstance(value, str) else tuple(value)


def _below(path: str, root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
