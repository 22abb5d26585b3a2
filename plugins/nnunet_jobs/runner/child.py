"""Runs in the step's own process: loads the specification, runs the step, and reports its result or failure in one file."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.exit_codes import STEP_EXITS
from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.permissions import apply_permissions, explain_permission_error, permission_error
from nnunet_jobs.patience import patiently
from nnunet_jobs.processes import die_with_parent, end_forks_with_us

log = logging.getLogger("nnunet_jobs")

GRANT_VARIABLE = "NNUNET_JOB_GRANT"
"""Environment variable from runner to child: JSON of device, gpus, cpus, memory_mib, grace_s and the runner's pid."""

Step = Callable[[StepParams, StepContext], dict[str, Any]]
_LONGEST_MESSAGE = 4000
_REPORT_S = 60.0  # the exit code reports a failure's class too


def load_step(name: str) -> Step:
    """Import ``run`` of ``nnunet_jobs.steps.<name>``."""
    step: Step = importlib.import_module(f"nnunet_jobs.steps.{name}").run
    return step


def outcome_path(job: JobDir, attempt: int) -> Path:
    """Return the file in which the child reports ``{"result": ...}`` or ``{"failure": ...}``."""
    return job.path / f"outcome.{attempt}.json"


def main(job: JobDir, attempt: int, *, steps: Callable[[str], Step] = load_step) -> int:
    """Run the job's step. Returns the exit code: 0, or the failure class's.

    Args:
        steps: Finds a step's function by name; another program can call this with its own steps.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the runner asks for it when the step hangs
    grant = json.loads(os.environ[GRANT_VARIABLE])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    _let_forks_die_of_sigterm()
    die_with_parent(signal.SIGTERM, parent=grant["runner"])
    end_forks_with_us()
    threading.Thread(target=_end_after_runner, args=(grant["runner"], grant["grace_s"]), daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # so that the kernel kills the step, never the runner that reports it
    hidden: tuple[str, ...] = ()
    try:
        spec = patiently(job.spec, what="the specification")
        hidden = spec.workspace.source_roots
        apply_permissions(spec.workspace)
        context = StepContext(
            workspace=spec.workspace, job=job, attempt=attempt, device=grant["device"], gpus=tuple(grant["gpus"]),
            cpus=grant["cpus"], memory_mib=grant["memory_mib"], stop=stop,
        )  # fmt: skip
        result = steps(spec.step)(spec.step_params(), context)
        patiently(context.write_records, what="progress")
        patiently(partial(write_json, outcome_path(job, attempt), {"result": result}), what="the step's report")
    except BaseException as error:
        failure = failure_from(error, attempt=attempt, hidden=hidden)
        if failure.failure_class.retryable and failure.failure_class is not FailureClass.INTERRUPTED:
            traceback.print_exc()  # not for errors that a person must correct, whose list of faults is long
        head, *more = failure.message.splitlines() or [""]
        log.error("%s: %s", failure.failure_class, f"{head} (the whole list is in failure.json)" if more else head)
        try:
            report = partial(write_json, outcome_path(job, attempt), {"failure": failure.to_json()})
            patiently(report, what="the step's report", limit_s=_REPORT_S)
        except OSError as unwritable:
            log.error("the report cannot be written (%s); the exit code says the class", unwritable)
        return STEP_EXITS[failure.failure_class]
    finally:
        sys.stdout.flush()
    return 0


def failure_from(error: BaseException, *, attempt: int, hidden: Sequence[str] = ()) -> Failure:
    """Convert an exception to a failure: class, message, faults. ``hidden``: folders below which no name is shown."""
    known = isinstance(error, JobError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    parts = error.parts if isinstance(error, ConfigError) and len(message) <= _LONGEST_MESSAGE else {}
    if denied := permission_error(error):
        message, parts = explain_permission_error(denied, hidden=hidden), {}
    return Failure(
        failure_class=classify(error),
        message=message[:_LONGEST_MESSAGE],
        attempt=attempt,
        faults=error.faults if isinstance(error, JobError) else (),
        parts=parts,
    )


def _let_forks_die_of_sigterm() -> None:
    """Let workers that we fork end by SIGTERM, as ``Process.terminate`` expects, instead of setting a copy of our event.

    The signal is blocked during the fork; otherwise one that came before the worker removed our handler would be lost.
    """
    held = False

    def before() -> None:
        nonlocal held
        held = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def release() -> None:
        if not held:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        release()

    os.register_at_fork(before=before, after_in_parent=release, after_in_child=in_child)


def _end_after_runner(runner: int, grace_s: float) -> None:
    """Kill our whole process group if the runner is dead and saving takes longer than the grace, since no other process would."""
    while os.getppid() == runner:
        time.sleep(1.0)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)
