"""The runner under real faults: killed, stopped, fenced, starved, with steps that hang, crash, ignore signals or leave orphans."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet.backends import Watch, read_status
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.leases import Ledger
from support.jobs import TESTS, backend, child_of, compile_library, is_alive, make_spec, no_runner_left, wait_final, wait_for, wait_gone

PYTHONPATH = os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)])


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


def failure_of(job: JobDir) -> Failure:
    failure = wait_final(job).failure
    assert failure is not None, job.log.read_text()
    return failure


def pids_in(path: Path, count: int) -> list[int]:
    wait_for(lambda: path.exists() and len(path.read_text().split()) == count, what=f"{count} workers")
    return [int(pid) for pid in path.read_text().split()]


# --- the runner dies ------------------------------------------------------------------------------------------------
def test_fault_09_a_killed_runner_leaves_no_second_trainer(workspace: Workspace, tmp_path: Path) -> None:
    """kill -9 the runner: the trainer is told to stop, keeps its lease until it has, and only then the next attempt computes."""
    spec = make_spec(
        workspace, "orphan", Resources(gpus=1, grace_s=20.0), until=str(tmp_path / "go"), note=str(tmp_path / "note"), slow_stop=2.0
    )
    job = backend().submit(spec)
    step = child_of(job)
    wait_for((tmp_path / "note").exists, what="the step")
    os.kill(job.state().pid, signal.SIGKILL)
    wait_for(lambda: job.runner_gone(), what="the runner's end")
    assert is_alive(step), "the trainer had no time to save"
    assert [item.owner for item in Ledger(workspace.leases).holders()] == [job.job_id]
    backend().submit(spec)
    wait_for(lambda: job.state().phase is Phase.WAITING and "waiting for a CPU slot" in job.state().message, what="the second attempt")
    assert is_alive(step)
    second = child_of(job)
    assert not is_alive(step), "two trainers at once"
    (tmp_path / "go").touch()
    assert wait_final(job).unwrap()["attempt"] == 2
    wait_gone(second)
    assert [line.split()[1] for line in (tmp_path / "note").read_text().splitlines()] == ["1", "2"]
    assert job.earlier_failures()[0].failure_class is FailureClass.LOST
    assert read_json(job.path / "outcome.1.json")["failure"]["failure_class"] == "interrupted", "it was killed, not told to stop"


def test_a_trainer_that_ignores_its_orphanhood_is_killed(workspace: Workspace, tmp_path: Path) -> None:
    spec = make_spec(workspace, "stubborn", Resources(gpus=1, grace_s=1.0), until=str(tmp_path / "go"), ignore=True)
    job = backend().submit(spec)
    step = child_of(job)
    os.kill(job.state().pid, signal.SIGKILL)
    wait_gone(step)
    wait_for(lambda: not Ledger(workspace.leases).holders(), what="the lease's end")


def test_an_unreachable_runner_that_comes_back_is_fenced_off(workspace: Workspace, tmp_path: Path) -> None:
    """A stopped runner is declared lost and replaced; woken up, it stops its step and writes nothing."""
    spec = make_spec(workspace, "fenced", until=str(tmp_path / "go"))
    job = backend().submit(spec)
    first, step = job.state().pid, child_of(job)
    now = [0.0]
    os.kill(first, signal.SIGSTOP)
    watch = Watch(lost_after_s=8.0, clock=lambda: now[0])
    for _ in range(6):
        now[0] += 2.0
        status = backend().status(job, watch)
    assert status.failure is not None
    assert status.failure.failure_class is FailureClass.LOST
    assert job.begin_attempt(expected=1) == 2
    os.kill(first, signal.SIGCONT)
    wait_gone(first, step)
    assert job.state().attempt == 2
    assert job.result() is None
    assert job.failure() is None
    assert "attempt 2 owns" in job.log.read_text()


def test_sigterm_to_the_runner_is_an_interruption_that_may_be_retried(workspace: Workspace, tmp_path: Path) -> None:
    job = backend().submit(make_spec(workspace, "shutdown", until=str(tmp_path / "go")))
    child_of(job)
    os.kill(job.state().pid, signal.SIGTERM)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert not failure.cancelled


def test_the_submitter_can_be_killed_and_has_no_zombies(workspace: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom support.jobs import *\nfrom nnunet_jobs.contract.storage.workspace import Workspace\n"
        "backend().submit(make_spec(Workspace.below(sys.argv[1]), 'detached', until=sys.argv[2]))\n"
        "print('submitted', flush=True); time.sleep(600)"
    )
    root = Path(workspace.raw).parent
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(tmp_path / "go")],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as submitter:
        assert submitter.stdout is not None
        assert submitter.stdout.readline() == b"submitted\n"
        (path,) = Path(workspace.jobs).glob("register-*")
        job = JobDir(path)
        runner, step = job.state().pid, child_of(job)
        assert Path(f"/proc/{submitter.pid}/task/{submitter.pid}/children").read_text() == ""
        assert os.getsid(runner) not in (submitter.pid, os.getsid(0))
        assert os.readlink(f"/proc/{runner}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{runner}/fd/1") == str(job.log)
        assert os.readlink(f"/proc/{runner}/cwd") == "/"
        os.killpg(submitter.pid, signal.SIGKILL)
    assert is_alive(runner)
    assert is_alive(step)
    (tmp_path / "go").touch()
    assert wait_final(job).unwrap()["attempt"] == 1


def test_a_runner_that_cannot_start_is_a_failure_that_says_why(workspace: Workspace) -> None:
    from airflow_nnunet.backends import LocalBackend

    job = LocalBackend(module="no_such_module").submit(make_spec(workspace, "no-module"))
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.CONFIG
    assert "No module named no_such_module" in failure.message


# --- the step misbehaves --------------------------------------------------------------------------------------------
def test_fault_18_too_much_memory_ends_as_host_oom_and_the_next_try_uses_half_the_cores(workspace: Workspace) -> None:
    resources = Resources(memory_mib=200, cpus=2, grace_s=5.0)
    spec = make_spec(workspace, "hungry", resources, allocate_mib=2048, pause=0.05)
    job = backend().submit(spec)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.HOST_OOM
    assert "memory_mib=200" in failure.message
    assert failure.details["peak_memory_mib"] > 200
    assert failure.details["cpus"] == 2
    backend().submit(spec)
    wait_for(lambda: job.state().attempt == 2)
    assert failure_of(job).details["cpus"] == 1
    assert "half the cores" in job.log.read_text()


def test_fault_18_a_memory_error_is_host_oom(workspace: Workspace) -> None:
    failure = failure_of(backend().submit(make_spec(workspace, "rlimit", rlimit_mib=600, allocate_mib=2048)))
    assert failure.failure_class is FailureClass.HOST_OOM


SUBMIT = (
    "import json, sys\nfrom support.jobs import *\nfrom nnunet_jobs.contract.storage.workspace import Workspace\n"
    "backend().submit(make_spec(Workspace.below(sys.argv[1]), **json.loads(sys.argv[2])))\n"
)


def submit_elsewhere(workspace: Workspace, before: str, **script: object) -> JobDir:
    """Submit from a process that first enters other surroundings with the statements ``before``."""
    subprocess.run(
        [sys.executable, "-c", before + SUBMIT, str(Path(workspace.raw).parent), json.dumps(script)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        check=True,
    )
    (path,) = Path(workspace.jobs).glob("register-*")
    return JobDir(path)


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup of 200 MiB, of version 1 or 2, or a skip where we may not make one."""
    root = Path("/sys/fs/cgroup")
    old = root / "memory"
    folder = (old if old.is_dir() else root) / f"nnunet-test-{os.getpid()}"
    try:
        folder.mkdir()
        limit = folder / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
        limit.write_text(str(200 << 20))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text().strip(), what="the cgroup's processes to end")
    folder.rmdir()


def test_fault_18_the_kernels_out_of_memory_kill_is_host_oom(workspace: Workspace, small_cgroup: Path) -> None:
    before = f"import os; open({str(small_cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    failure = failure_of(submit_elsewhere(workspace, before, name="killed", allocate_mib=1024))
    assert failure.failure_class is FailureClass.HOST_OOM
    assert failure.exit_code == -signal.SIGKILL
    assert "memory ran out" in failure.message


def test_full_shared_memory_is_host_oom_with_the_mend(workspace: Workspace) -> None:
    """In a mount namespace of its own whose /dev/shm has 24 MiB."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    before = (
        "import ctypes, subprocess; assert ctypes.CDLL(None).unshare(0x20000) == 0\n"
        "subprocess.run(['mount', '--make-rprivate', '/'], check=True)\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', '/dev/shm'], check=True)\n"
    )
    failure = failure_of(submit_elsewhere(workspace, before, name="shm", fill_shm_mib=64))
    assert failure.failure_class is FailureClass.HOST_OOM
    assert "/dev/shm full" in failure.message
    assert failure.exit_code == -signal.SIGBUS


def test_fault_28_a_stopped_step_hangs_and_is_restarted(workspace: Workspace, tmp_path: Path) -> None:
    spec = make_spec(workspace, "hang", Resources(hang_s=2.0, grace_s=3.0), until=str(tmp_path / "go"))
    job = backend().submit(spec)
    step = child_of(job)
    os.kill(step, signal.SIGSTOP)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.HANG
    assert "no sign of progress" in failure.message
    wait_gone(step)
    (tmp_path / "go").touch()
    backend().submit(spec)
    assert wait_final(job).unwrap()["attempt"] == 2


def test_a_step_without_progress_hangs_though_its_runner_beats(workspace: Workspace, tmp_path: Path) -> None:
    job = backend().submit(
        make_spec(workspace, "silent", Resources(hang_s=1.5, grace_s=1.0), until=str(tmp_path / "go"), silent=True, ignore=True)
    )
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.HANG
    assert "Current thread" in job.log.read_text(), "the stacks of a hanging step belong into the log"


def test_cancel_kills_a_step_that_ignores_it_after_its_grace(workspace: Workspace, tmp_path: Path) -> None:
    job = backend().submit(
        make_spec(workspace, "deaf", Resources(grace_s=1.0), until=str(tmp_path / "go"), deaf=True, note=str(tmp_path / "note"))
    )
    wait_for((tmp_path / "note").exists)
    step = child_of(job)
    backend().cancel(job, "enough")
    failure = failure_of(job)
    assert failure.cancelled
    assert failure.exit_code == -signal.SIGKILL
    wait_gone(step)


@pytest.mark.parametrize("escape", [False, True], ids=["same-session", "own-session"])
def test_no_worker_outlives_its_step(workspace: Workspace, tmp_path: Path, escape: bool) -> None:
    pids = tmp_path / "pids"
    job = backend().submit(make_spec(workspace, "orphans", workers=3, worker_pids=str(pids), escape=escape, wait_workers=True))
    assert wait_final(job).unwrap()["attempt"] == 1
    wait_gone(*pids_in(pids, 3))


def test_no_program_outlives_its_step(workspace: Workspace, tmp_path: Path) -> None:
    """Programs in sessions of their own, without a tie to the step."""
    pids = tmp_path / "pids"
    job = backend().submit(make_spec(workspace, "programs", programs=2, worker_pids=str(pids)))
    assert wait_final(job).unwrap()["attempt"] == 1
    wait_gone(*pids_in(pids, 2))
    assert "ended 2 process(es) that the step had left" in job.log.read_text()


def test_workers_die_with_a_killed_step_and_with_runner_and_step_together(workspace: Workspace, tmp_path: Path) -> None:
    for name, both in (("step", False), ("both", True)):
        pids = tmp_path / name
        job = backend().submit(make_spec(workspace, name, workers=2, worker_pids=str(pids), escape=True, until=str(tmp_path / "never")))
        workers, step = pids_in(pids, 2), child_of(job)
        if both:
            os.kill(job.state().pid, signal.SIGKILL)
        os.kill(step, signal.SIGKILL)
        wait_gone(*workers)
        if not both:
            failure = failure_of(job)
            assert failure.failure_class is FailureClass.LOST
            assert "SIGKILL" in failure.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SIGSEGV", FailureClass.BUG), ("SIGABRT", FailureClass.BUG), ("SIGBUS", FailureClass.BUG), ("SIGKILL", FailureClass.LOST)],
)
def test_a_crash_is_classified_by_its_signal(workspace: Workspace, name: str, expected: FailureClass) -> None:
    failure = failure_of(backend().submit(make_spec(workspace, f"crash-{name.lower()}", kill=name)))
    assert failure.failure_class is expected
    assert name in failure.message
    assert failure.exit_code == -getattr(signal, name)


def test_a_result_that_is_no_json_is_a_bug_not_a_success(workspace: Workspace) -> None:
    failure = failure_of(backend().submit(make_spec(workspace, "nan", nan=True)))
    assert failure.failure_class is FailureClass.BUG


def test_a_spawned_pool_works_and_the_step_is_not_run_again_by_its_workers(workspace: Workspace, tmp_path: Path) -> None:
    job = backend().submit(make_spec(workspace, "pool", pool=True, note=str(tmp_path / "note")))
    assert wait_final(job).unwrap() == {"pool": [1, 2]}
    assert len((tmp_path / "note").read_text().splitlines()) == 1


def test_a_forked_worker_can_be_terminated_inside_a_step(workspace: Workspace) -> None:
    job = backend().submit(make_spec(workspace, "terminate", terminate_worker=True))
    assert wait_final(job).unwrap()["attempt"] == 1


# --- clocks ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("jump", ["3600", "-3600"])
def test_fault_27_a_clock_that_jumps_an_hour_is_no_hang_and_loses_no_lease(workspace: Workspace, tmp_path: Path, jump: str) -> None:
    """The wall clock of runner and step jumps while a job runs under a short hang limit."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    library = compile_library(TESTS.parent / "soak" / "wall_clock.c", tmp_path / "wall_clock.so")
    environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_SHIFT": str(clock)}
    spec = make_spec(workspace, f"clock{jump}", Resources(gpus=1, hang_s=3.0, grace_s=3.0), until=str(tmp_path / "go"), report_time=True)
    job = backend(environment=environment).submit(spec)
    child_of(job)
    before = wait_for(lambda: job.read_metrics()[0], what="a record")[-1]["t"]
    clock.write_text(jump)
    wait_for(lambda: abs(job.read_metrics()[0][-1]["t"] - before) > 3000, what="the jump")
    beat = job.beat()
    wait_for(lambda: job.beat() >= beat + 4, what="four more seconds")
    assert read_status(job).phase is Phase.RUNNING
    assert [item.owner for item in Ledger(workspace.leases).holders()] == [job.job_id]
    assert not backend().status(job, Watch()).final
    (tmp_path / "go").touch()
    assert wait_final(job).unwrap()["attempt"] == 1


def test_submit_and_end_are_quick_enough_to_be_seen(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what a job costs beyond its step; nothing is asserted about time."""
    started = time.perf_counter()
    job = backend().submit(make_spec(workspace, "timing"))
    submitted = time.perf_counter()
    wait_final(job).unwrap()
    with capsys.disabled():
        print(f"\n  job overhead: submit {submitted - started:.2f} s, whole {time.perf_counter() - started:.2f} s")
