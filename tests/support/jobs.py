"""A program that speaks the runner's command line with steps made for tests, and helpers to submit and watch such jobs.

``python -m support.jobs run JOB_DIR --attempt N`` is the real runner; only the step functions differ. A job's ``register``
parameters carry the script of the step as JSON in ``source``.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from airflow_nnunet.backends import JobStatus, LocalBackend, Watch, read_status
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.workspace import Workspace

TESTS = Path(__file__).resolve().parents[1]


# --- steps ----------------------------------------------------------------------------------------------------------
def run(params: RegisterParams, context: StepContext) -> dict[str, Any]:
    """Do what the script says, in the order of the lines below."""
    script = json.loads(params.source)
    if note := script.get("note"):
        with open(note, "a") as file:
            file.write(f"{os.getpid()} {context.attempt}\n")
    if "ignore" in script:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(script.get("workers", 0)):
        if os.fork() == 0:
            if script.get("escape"):
                os.setsid()
            with open(script["worker_pids"], "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(3600)
    if "programs" in script:
        for _ in range(script["programs"]):
            program = subprocess.Popen(["sleep", "3600"], start_new_session=True)
            program.returncode = 0  # left behind on purpose
            with open(script["worker_pids"], "a") as file:
                file.write(f"{program.pid}\n")
    if script.get("wait_workers"):
        pids = Path(script["worker_pids"])
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == script["workers"])
    for number in range(script.get("records", 0)):
        context.progress("train", number + 1, script["records"], loss=float("nan"))
    if "fail_first" in script and context.attempt == 1:
        raise Failure(failure_class=FailureClass(script["fail_first"]), message="as the test asked").to_error()
    if "kill_runner" in script:
        os.kill(os.getppid(), signal.SIGKILL)
    if "raise" in script:
        raise Failure(failure_class=FailureClass(script["raise"]), message="as the test asked").to_error()
    if "kill" in script:
        os.kill(os.getpid(), getattr(signal, script["kill"]))
    if "rlimit_mib" in script:
        resource.setrlimit(resource.RLIMIT_AS, (script["rlimit_mib"] << 20,) * 2)
    kept = []
    for _ in range(script.get("allocate_mib", 0) // 16):
        kept.append(b"x" * (16 << 20))
        context.beat()
        time.sleep(script.get("pause", 0.0))
    if "fill_shm_mib" in script:
        with open("/dev/shm/nnunet-test", "w+b") as file:
            file.truncate(script["fill_shm_mib"] << 20)
            with mmap.mmap(file.fileno(), 0) as shared:
                shared[:] = b"x" * len(shared)
    if "pool" in script:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return {"pool": pool.map(abs, [-1, -2])}
    if "terminate_worker" in script:
        import multiprocessing

        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        worker.start()
        worker.terminate()
        worker.join(10)
        if worker.exitcode != -signal.SIGTERM:
            raise RuntimeError(f"the worker did not end: {worker.exitcode}")
    if "until" in script:
        with context.content_lock(Path(script["until"] + ".lock"), what="the test's content"):
            _work_until(script, context)
    if "surface" in script:
        return _surface(script["surface"])
    if "nan" in script:
        return {"dice": float("nan")}
    environment = {name: os.environ.get(name) for name in script.get("show", ())}
    return {
        "attempt": context.attempt,
        "device": context.device,
        "gpus": list(context.gpus),
        "cpus": context.cpus,
        "environment": environment,
    }


def _surface(places: list[str]) -> dict[str, Any]:
    """What a process of this job may do, as seen from inside: its user and rights, and which of these places it can write to."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    writable = []
    for place in places:
        with contextlib.suppress(OSError):
            (Path(place) / "written").write_bytes(b"x")
            writable.append(place)
    return {
        "user": [os.getuid(), os.getgid()],
        "rights": {name: status[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")},
        "writable": writable,
        "sockets": [str(path) for path in Path("/run").rglob("*.sock")] + [str(path) for path in Path("/var/run").rglob("*.sock")],
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "first": Path("/proc/1/comm").read_text().strip(),
        "environment": sorted(os.environ),
        "shm_mib": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20,
        "home": os.environ["HOME"],
    }


def _work_until(script: dict[str, Any], context: StepContext) -> None:
    while not os.path.exists(script["until"]):
        if script.get("report_time"):
            context.progress("train")
        elif not script.get("silent"):
            context.beat()
        if context.stop.is_set() and not script.get("deaf"):
            time.sleep(script.get("slow_stop", 0.0))
            context.check_stop()
        time.sleep(0.02)


# --- submitting and watching ----------------------------------------------------------------------------------------
def backend(**options: Any) -> LocalBackend:
    """The local backend, starting this program instead of nnunet_jobs."""
    return LocalBackend(module="support.jobs", environment={"PYTHONPATH": str(TESTS), **options.pop("environment", {})}, **options)


def make_spec(workspace: Workspace, name: str = "job", resources: Resources | None = None, **script: Any) -> JobSpec:
    """A job whose step does what ``script`` says; see :func:`run`."""
    return JobSpec(
        job_id=make_job_id("register", name),
        step="register",
        params={"dataset_id": 1, "name": "Test", "source": json.dumps(script)},
        workspace=workspace,
        resources=resources or Resources(grace_s=5.0),
    )


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 30.0, what: str = "") -> Any:
    """The condition's first true value; fails the test when it does not come."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s} s in vain for {what or condition}")


def wait_final(job: JobDir, *, timeout_s: float = 40.0) -> JobStatus:
    """Status of a job whose attempt is over; shows the log when it does not end."""
    with contextlib.suppress(AssertionError):
        status: JobStatus = wait_for(lambda: (status := read_status(job)).final and status, timeout_s=timeout_s)
        return status
    raise AssertionError(f"{job} does not end: {job.state()}\n{job.log.read_text()}")


def wait_gone(*pids: int) -> None:
    """Until these processes have ended (zombies of a foreign parent count as ended)."""
    for pid in pids:
        wait_for(partial(_is_gone, pid), what=f"end of process {pid}")


def _is_gone(pid: int) -> bool:
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """True for a process that exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text[text.rfind(")") + 2] not in "ZX"


def child_of(job: JobDir) -> int:
    """Process number of a running job's step."""

    def find() -> int | None:
        runner = job.state().pid
        with contextlib.suppress(OSError, ValueError):
            for child in Path(f"/proc/{runner}/task/{runner}/children").read_text().split():
                if b"step" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return int(child)
        return None

    pid: int = wait_for(find, what=f"the step of {job}")
    return pid


@contextlib.contextmanager
def no_runner_left(workspace: Workspace) -> Iterator[None]:
    """Kill what a test's jobs left behind, so that a failing test does not disturb the next ones."""
    try:
        yield
    finally:
        root = workspace.jobs.encode()
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if any(part.startswith(root) for part in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")):
                        os.kill(int(entry), signal.SIGKILL)


def compile_library(source: Path, target: Path) -> Path:
    """Compile a C file to a shared library."""
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(target), str(source), "-ldl"], check=True)
    return target


__all__ = ["Watch", "backend", "child_of", "compile_library", "is_alive", "make_spec", "no_runner_left", "run", "wait_final", "wait_for"]

if __name__ == "__main__":
    from nnunet_jobs.__main__ import main

    sys.exit(main(module="support.jobs", steps=lambda name: run))
