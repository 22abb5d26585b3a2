"""Defines a job by a frozen specification that an operator writes and the runner reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.fields import field_types, fits, type_in_words
from nnunet_jobs.contract.steps.params import STEPS
from nnunet_jobs.contract.storage.files import content_hash
from nnunet_jobs.contract.storage.workspace import Workspace

JOB_ID = re.compile(r"[a-z][a-z0-9-]{7,79}")
TEAM = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Name of a team: its file's, a label of its jobs, and a file of the lease ledger."""
DEVICES = ("auto", "cuda", "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The resources that a job needs on its host.

    Attributes:
        device: ``cuda`` requires a GPU, ``cpu`` uses none, ``auto`` uses a GPU if there is one.
        gpus: Number of GPUs to lease; 0 for steps that only need cores (register, preprocess).
        gpu_memory_mib: Memory to reserve on each GPU; None reserves whole GPUs.
        cpus: Cores to use; 0 means all of the container's or host's quota, shared fairly by CPU slots.
        memory_mib: Limit on the job's memory in MiB; no limit if None.
        shm_mib: Shared memory in MiB of a job in a container, for the batches of data workers; Docker's default of
            64 MiB is too small.
        hang_s: Minimum of the hang limit in seconds; a job hangs after max(10 median epochs, this) without progress.
        grace_s: Seconds between SIGTERM (save, stop) and SIGKILL.
    """

    device: str = "auto"
    gpus: int = 0
    gpu_memory_mib: int | None = None
    cpus: int = 0
    memory_mib: int | None = None
    shm_mib: int = 8192
    hang_s: float = 300.0
    grace_s: float = 120.0

    def __post_init__(self) -> None:
        for name, hint in field_types(Resources).items():
            if not fits(getattr(self, name), hint):
                raise ConfigError(field=name, value=getattr(self, name), problem=f"must be {type_in_words(hint)}")
        if self.device not in DEVICES:
            raise ConfigError(field="device", value=self.device, problem=f"must be one of {', '.join(DEVICES)}")
        for name in ("gpus", "cpus"):
            if getattr(self, name) < 0:
                raise ConfigError(field=name, value=getattr(self, name), problem="must be 0 or more")
        for name in ("gpu_memory_mib", "memory_mib"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(field=name, value=getattr(self, name), problem="must be more than 0 MiB, or empty for no limit")
        if self.shm_mib <= 0:
            raise ConfigError(field="shm_mib", value=self.shm_mib, problem="must be more than 0 MiB")
        for name in ("hang_s", "grace_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(field=name, value=getattr(self, name), problem="must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One piece of work: its step, parameters, workspace and resources.

    ``labels`` say where it was submitted (dag, run, task, map index, team); they never hold patient data.
    """

    job_id: str
    step: str
    params: Mapping[str, Any]
    workspace: Workspace
    resources: Resources = field(default_factory=Resources)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not JOB_ID.fullmatch(self.job_id):
            raise ConfigError(field="job_id", value=self.job_id, problem="use 8 to 80 of a-z, 0-9 and '-', starting with a letter")
        if self.step not in STEPS:
            raise ConfigError(field="step", value=self.step, problem=f"must be one of {', '.join(STEPS)}")
        if self.team and not TEAM.fullmatch(self.team):
            raise ConfigError(
                where="labels",
                field="team",
                value=self.team,
                problem="use 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit",
            )
        self.step_params()

    @property
    def team(self) -> str:
        """Return the team that owns the job; empty if there are no teams."""
        return self.labels.get("team", "")

    def step_params(self) -> StepParams:
        """Return the parameters as the step's own checked dataclass."""
        return STEPS[self.step].from_json(self.params)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return {
            "job_id": self.job_id,
            "step": self.step,
            "params": dict(self.params),
            "workspace": self.workspace.to_json(),
            "resources": asdict(self.resources),
            "labels": dict(self.labels),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """Read what :meth:`to_json` wrote, or a job's ``spec.json``.

        Raises:
            ConfigError: A field is missing, out of range or unknown. Unknown fields are allowed if the data has
                ``schema``: it is from a job's folder, where a later version may have added optional fields.
        """
        unknown = sorted(set(data) - {item.name for item in fields(cls)})
        if unknown and "schema" not in unknown:
            raise ConfigError(f"job specification has unknown fields {unknown}")
        try:
            resources = dict(data["resources"]) if "resources" in data else {}
            if unknown:
                resources = {name: value for name, value in resources.items() if name in field_types(Resources)}
            return cls(
                job_id=data["job_id"],
                step=data["step"],
                params=data["params"],
                workspace=Workspace.from_json(data["workspace"]),
                resources=Resources(**resources),
                labels=data.get("labels", {}),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"job specification is not readable: {error}") from error


def make_job_id(step: str, *identity: object) -> str:
    """Return the name of a job: the step and a hash of the work's identity, without the attempt (dag, run, task, map index, clear)."""
    return f"{step.replace('_', '-')}-{content_hash([str(part) for part in identity], length=20)}"
