"""Grantors and adopters as processes of their own, forked from a warm one, so that hundreds of them can be started and killed.

The warm process (``python -m support.handover serve``) calls nnunet_jobs' own command line in each fork. It is also the program that
speaks ``step``: a step that really needs its GPUs for itself, halves of them for jobs that share, and fails when another one is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.devices.nvml import read_inventory
from nnunet_jobs.processes import descendants

TESTS = Path(__file__).resolve().parents[1]
HALVES = 2


# --- the step ---------------------------------------------------------------------------------------------------------
def run(params: RegisterParams, context: StepContext) -> dict[str, Any]:
    """Occupy the devices, work for ``seconds`` or until the file ``until`` is there, say what was seen."""
    script = json.loads(params.source)
    with contextlib.ExitStack() as stack:
        for gpu in context.gpus:
            occupy = any if script["half"] else all  # both stop as soon as they know
            if not occupy(_occupied(stack, Path(script["busy"]) / f"{gpu}.{half}") for half in range(HALVES)):
                raise RuntimeError(f"{gpu} is in use by another step")
        time.sleep(float(script.get("seconds", 0)))
        while "until" in script and not os.path.exists(script["until"]):
            context.beat()
            context.check_stop()
            time.sleep(0.01)
    return {
        "attempt": context.attempt,
        "device": context.device,
        "gpus": list(context.gpus),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "seen": [gpu.uuid for gpu in read_inventory().gpus] if script.get("look") else [],
    }


def _occupied(stack: contextlib.ExitStack, path: Path) -> bool:
    file = stack.enter_context(path.open("ab"))
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


# --- the warm process -------------------------------------------------------------------------------------------------
class Forge:
    """Starts processes that run nnunet_jobs' command line; use as a context manager. ``environment`` is that of all of them."""

    def __init__(self, environment: dict[str, str]) -> None:
        paths = os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.handover", "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": paths},
            text=True,
        )
        self._started: list[int] = []

    def __enter__(self) -> Forge:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, command: str, job: JobDir, attempt: int, *more: str, **environment: str) -> int:
        """Process number of ``nnunet_jobs COMMAND JOB_DIR --attempt N ...``, whose output goes to the job's log."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "argv": [command, str(job.path), "--attempt", str(attempt), *more],
            "log": str(job.log),
            "environment": environment,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._started.append(int(self._process.stdout.readline()))
        return self._started[-1]

    def kill_all(self) -> None:
        """End what was started and is still there, steps included."""
        for pid in self._started:
            if f"{TESTS}" in _environment(pid):  # the number may be anybody's by now
                kill_container(pid)
        self._started.clear()


def _environment(pid: int) -> str:
    """Environment that a process was started with; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


def kill_container(pid: int) -> None:
    """What the end of a container does: SIGKILL to a process and all below it."""
    for victim in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def _serve() -> None:
    import pynvml  # noqa: F401 - warm, as all that a fork needs

    import nnunet_jobs.runner.handover
    import nnunet_jobs.runner.runner
    from nnunet_jobs.__main__ import main

    assert nnunet_jobs.runner.handover
    assert nnunet_jobs.runner.runner
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks are nobody's zombies
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        code = 70
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o664)
            for fd in (1, 2):
                os.dup2(log, fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.update(order["environment"])
            code = main(order["argv"], module="support.handover", steps=lambda name: run)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        _serve()
    else:
        from nnunet_jobs.__main__ import main

        sys.exit(main(module="support.handover", steps=lambda name: run))
