"""Finds the failure class from the way in which a step's process ended."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from nnunet_jobs.contract.exit_codes import STEP_EXITS
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.devices import host

_FULL_MIB = 16  # less than one batch fits

OomKills = tuple[int | None, int]


def classify_exit(code: int, reported: Failure | None, *, attempt: int, oom_before: OomKills, oom_after: OomKills, folder: Path) -> Failure:
    """Return the failure of a step that was not stopped on purpose.

    Args:
        code: Exit code, or minus the signal.
        reported: What the step itself reported, if it still could.
        oom_before: :func:`nnunet_jobs.devices.host.oom_kills` at the start of the child.
        oom_after: The same at its end.
        folder: Folder that the job writes to.
    """
    own_kill = oom_before[0] is not None and oom_after[0] is not None and oom_after[0] > oom_before[0]
    host_kill = oom_after[1] > oom_before[1]
    if reported is not None:
        if own_kill and reported.failure_class in (FailureClass.BUG, FailureClass.LOST):
            message = f"the kernel killed one of the step's processes for memory, then: {reported.message}"
            return replace(reported, failure_class=FailureClass.HOST_OOM, message=message, exit_code=code)
        return replace(reported, exit_code=code)
    failure_class, message = _by_exit(code, own_kill=own_kill, host_kill=host_kill, folder=folder)
    return Failure(failure_class=failure_class, message=message, attempt=attempt, exit_code=code)


def _by_exit(code: int, *, own_kill: bool, host_kill: bool, folder: Path) -> tuple[FailureClass, str]:
    if code >= 0:
        for failure_class, number in STEP_EXITS.items():
            if code == number:
                return failure_class, "the step could not write its report; the log has the message"
        return FailureClass.BUG, f"the step ended with exit code {code} and no report; see the end of the log"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        if own_kill or host_kill:
            return FailureClass.HOST_OOM, "the kernel killed the step because memory ran out"
        return FailureClass.LOST, "the step was killed (SIGKILL) from outside; the kernel reports no lack of memory"
    if -code == signal.SIGBUS:
        total, free = host.shared_memory_mib()
        if free < _FULL_MIB:
            message = f"SIGBUS with /dev/shm full ({free} of {total} MiB free); give the host or container 8 GiB of shared memory"
            return FailureClass.HOST_OOM, message
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize < _FULL_MIB << 20:
            return FailureClass.DISK_FULL, f"SIGBUS with no space left at {folder}"
    if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return FailureClass.INTERRUPTED, f"the step was ended by {name} from outside"
    return FailureClass.BUG, f"the step crashed with {name}; the log has the stack"
