"""Passes devices that one process leased for an attempt to another process: ``grant.json``, which becomes ``adopted.json``.

The first is the runner while the job waits; the second runs in a container that has only the granted GPUs. The code that starts
that container calls :func:`read_grant`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.files import read_json, write_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The leased devices of one attempt, for the code that starts its container and for the runner inside.

    Attributes:
        attempt: The only attempt that may use it.
        device: ``cuda`` or ``cpu``.
        gpus: UUIDs (of GPUs or MIG devices) that the container must get, and no others; empty on the CPU.
        devices: The ledger's names of the leased devices: ``gpus``, or a CPU slot.
        leases: Numbers of the lease entries, in the order of ``devices``; they are valid on ``host`` only.
        memory_mib: Memory in MiB reserved on each device; None for whole devices.
        slots: Number of similar jobs that share the host, for a fair share of its cores.
        host: Name of the host or container that the lease was taken in.
    """

    attempt: int
    device: str
    gpus: tuple[str, ...]
    devices: tuple[str, ...]
    leases: tuple[int, ...]
    memory_mib: int | None
    slots: int
    host: str

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ConfigError(
                where="grant.json:", field="device", value=self.device, problem="must be cuda or cpu", fix="submit the job again"
            )
        if not self.devices or len(self.devices) != len(self.leases):
            raise ConfigError(f"grant.json: devices={self.devices!r} and leases={self.leases!r} must pair; submit the job again")
        if self.gpus != (self.devices if self.device == "cuda" else ()):
            raise ConfigError(f"grant.json: gpus={self.gpus!r} are not the leased devices {self.devices!r}; submit the job again")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grant:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: A field is missing or wrong.
        """
        try:
            known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
            return cls(**{**known, **{name: tuple(data[name]) for name in ("gpus", "devices", "leases")}})
        except (KeyError, TypeError) as error:
            names = ", ".join(item.name for item in fields(cls))
            raise ConfigError(f"grant.json is not readable ({error}); it has {names}; submit the job again") from error


def read_grant(job: JobDir, attempt: int) -> Grant | None:
    """Return the grant that is offered to this attempt and not adopted yet, else None."""
    return _read(_offered(job), attempt)


def was_granted(job: JobDir, attempt: int) -> bool:
    """Whether this attempt has been offered a grant, adopted or not."""
    return read_grant(job, attempt) is not None or _read(_adopted(job), attempt) is not None


def offer_grant(job: JobDir, grant: Grant) -> None:
    """Write ``grant.json``; from now on, the attempt's own container may be started.

    Raises:
        Fenced: A newer attempt owns the job.
    """
    with job.owned_by(grant.attempt):
        write_record(_offered(job), grant.to_json())


def take_grant(job: JobDir, attempt: int) -> bool:
    """End the offer because this process has adopted it. Returns False if it was withdrawn or another process was faster.

    Raises:
        Fenced: A newer attempt owns the job.
    """
    with job.owned_by(attempt):
        if read_grant(job, attempt) is None:
            return False
        os.replace(_offered(job), _adopted(job))
        return True


def withdraw_grant(job: JobDir, attempt: int) -> None:
    """Withdraw the offer, if it was not adopted.

    Raises:
        Fenced: A newer attempt owns the job, and any offer now is that attempt's.
    """
    with job.owned_by(attempt):
        if read_grant(job, attempt) is not None:
            _offered(job).unlink()


def _offered(job: JobDir) -> Path:
    return job.path / "grant.json"


def _adopted(job: JobDir) -> Path:
    return job.path / "adopted.json"


def _read(path: Path, attempt: int) -> Grant | None:
    try:
        grant = Grant.from_json(read_json(path))
    except FileNotFoundError:
        return None
    return grant if grant.attempt == attempt else None
