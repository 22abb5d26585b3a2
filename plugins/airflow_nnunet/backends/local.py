"""Runs jobs as detached processes on this host, which continue without the worker, the task and Airflow itself."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from airflow_nnunet.backends.base import Backend
from nnunet_jobs.contract.failure import ConfigError, Lost
from nnunet_jobs.contract.job import packages
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec

# The runner needs no secret of Airflow (database, Fernet key, task token), so it gets none.
_PRIVATE = ("AIRFLOW", "_AIRFLOW", "__AIRFLOW")


class LocalBackend(Backend):
    """Starts the runner in a session of its own. It writes to the job's log and inherits nothing that Airflow waits
    for.

    Args:
        python: Interpreter with nnU-Net installed; this interpreter if None.
        module: Program that takes the runner's command line: ``nnunet_jobs``, or a site's own wrapper around it.
        environment: Additional environment variables for the runner, such as ``TORCHINDUCTOR_CACHE_DIR``.
        start_timeout_s: Seconds to wait until the runner is on record.
    """

    name = "local"

    def __init__(
        self,
        *,
        python: str | None = None,
        module: str = "nnunet_jobs",
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        self.python = python or sys.executable
        self.module = module
        self.environment = dict(environment or {})
        self.start_timeout_s = start_timeout_s
        if not os.path.isabs(self.python) or not os.access(self.python, os.X_OK):
            raise ConfigError(
                field="python", value=self.python, problem="must be the absolute path of an interpreter that has nnunetv2 installed"
            )

    def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """See :meth:`Backend.start`."""
        ready_r, ready_w = os.pipe()
        try:
            with open(job.log, "ab") as output:
                # The process that we wait for forks the runner and ends, so the runner is no child of an Airflow task.
                process = subprocess.Popen(
                    [
                        self.python,
                        "-m",
                        self.module,
                        "run",
                        str(job.path),
                        "--attempt",
                        str(attempt),
                        "--detach",
                        "--ready-fd",
                        str(ready_w),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(ready_w,),
                    start_new_session=True,
                    cwd="/",
                    env=self._environment(spec),
                )
            os.close(ready_w)
            ready_w = -1
            code = process.wait()
            word = self._read_word(ready_r)
        finally:
            os.close(ready_r)
            if ready_w >= 0:
                os.close(ready_w)
        if word != b"ready" and job.state().attempt == attempt and not job.state().phase.final and not job.state().pid:
            last = _tail(job)
            message = f"the runner did not start (exit code {code}, python={self.python!r}); the log ends with: {last}"
            raise ConfigError(message) if code else Lost(message)

    def _read_word(self, fd: int) -> bytes:
        """Return what the runner writes when it is on record; empty if it has ended or takes too long."""
        word = b""
        deadline = time.monotonic() + self.start_timeout_s
        while (left := deadline - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
            part = os.read(fd, 16)
            if not part:
                break
            word += part
        return word

    def _environment(self, spec: JobSpec) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
        found.update(self.environment)
        found["PYTHONSAFEPATH"] = "1"
        if self.python == sys.executable or not packages.is_shared(packages.home()):
            return packages.for_this_interpreter(found)
        return packages.on_path(found, packages.linked(Path(spec.workspace.jobs)))  # exists as long as the job's folder


def _tail(job: JobDir, limit: int = 2000) -> str:
    size = job.log.stat().st_size if job.log.exists() else 0
    return job.read_log(max(0, size - limit))[0].decode(errors="replace").strip()
