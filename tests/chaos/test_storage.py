"""The shared storage goes away and comes back, is not mounted, or is full: jobs and watchers wait, and nothing is made in its place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import FakeBackend, FakeOutcome, JobStatus, Watch
from airflow_nnunet.jobs.trigger import JobTrigger
from airflow_nnunet.operators import TrainFoldOperator
from airflow_nnunet.settings.config import NnunetConfig
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage import marker
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.marker import MARKER, NotMounted, mark_workspace
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.leases import Ledger
from support.airflow import context
from support.jobs import backend, child_of, make_spec, no_runner_left, wait_final, wait_for

DEVICES = [Device(uuid="cpu-0", total_mib=1, free_mib=1)]


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB, as row 64 asks for."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave not a page on a disk."""
    ballast = folder / "ballast"
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def away(workspace: Workspace) -> Path:
    """Take the jobs folder away, as a share that is not mounted any more."""
    place = Path(workspace.jobs).with_name("elsewhere")
    os.rename(workspace.jobs, place)
    return place


def back(workspace: Workspace, place: Path) -> None:
    assert not Path(workspace.jobs).exists(), f"somebody made {workspace.jobs} while its share was away: {os.listdir(workspace.jobs)}"
    os.rename(place, workspace.jobs)


async def first_event(trigger: JobTrigger) -> dict[str, Any]:
    event = await anext(aiter(trigger.run()))
    payload: dict[str, Any] = event.payload
    return payload


class Watching:
    """A trigger that watches in a thread of its own."""

    def __init__(self, job: JobDir, *, backend: str = "fake", lost_after: float = 5.0) -> None:
        self.trigger = JobTrigger(job=str(job.path), backend=backend, poll_interval=0.02, lost_after=lost_after)
        self.events: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.events.append(asyncio.run(first_event(self.trigger)))
        except BaseException as error:
            self.errors.append(error)

    def end(self) -> dict[str, Any]:
        self._thread.join(40)
        assert not self.errors
        assert self.events, "the trigger still waits"
        return self.events[0]


def fake(workspace: Workspace, outcome: FakeOutcome) -> JobDir:
    return FakeBackend(script=lambda spec, attempt: outcome).submit(make_spec(workspace, "job"))


# --- away and back (rows 61 and 62) ---------------------------------------------------------------------------------
def test_fault_61_trigger_runner_and_step_wait_out_a_storage_that_is_away(
    workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The job reports all the while, and ends while the storage is away: no attempt is spent and no record is lost."""
    go = tmp_path / "go"
    spec = make_spec(workspace, "job", Resources(gpus=1, grace_s=5.0), until=str(go), report_time=True)
    job = backend().submit(spec)
    watching = Watching(job, backend="local", lost_after=2.0)
    step = child_of(job)
    wait_for(lambda: len(job.read_metrics()[0]) > 3, what="progress")
    place, began = away(workspace), time.time()
    wait_for(lambda: "cannot be read now" in capfd.readouterr().out, what="the trigger's word about the outage")
    log = place / job.job_id / "log.txt"
    wait_for(lambda: "heartbeat: the storage does not answer" in log.read_text(), what="the runner's word about it")
    wait_for(lambda: "progress: the storage does not answer" in log.read_text(), what="the step's word about it")
    go.touch()
    wait_for(lambda: "waiting for it" in log.read_text(), what="the step's end")
    ended = time.time()
    back(workspace, place)
    assert watching.end()["phase"] == "done"
    assert wait_final(job).unwrap()["attempt"] == 1
    times = [record["t"] for record in job.read_metrics()[0]]
    assert times == sorted(times)
    assert [moment for moment in times if began < moment < ended], "records of the outage are missing"
    assert not os.path.exists(f"/proc/{step}")
    wait_for(lambda: "can be read again after" in capfd.readouterr().out, what="the trigger's word about the end")


def test_fault_61_an_attempt_that_waits_for_its_lease_waits_out_the_storage_too(workspace: Workspace, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = backend().submit(make_spec(workspace, "first", Resources(gpus=1), until=str(go)))
    child_of(first)
    second = backend().submit(make_spec(workspace, "second", Resources(gpus=1)))
    wait_for(lambda: "cpu-0 by" in second.state().message, what="the second job to wait")
    place = away(workspace)
    log = place / second.job_id / "log.txt"
    wait_for(lambda: "stop requests: the storage does not answer" in log.read_text(), what="the waiting runner to notice")
    back(workspace, place)
    go.touch()
    assert [wait_final(job).unwrap()["attempt"] for job in (first, second)] == [1, 1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN])
def test_fault_61_whatever_the_storage_answers_the_trigger_waits(workspace: Workspace, number: int) -> None:
    """The storage's answers come from a backend whose every look fails for a while; that is where a sick mount would show."""
    job = fake(workspace, FakeOutcome(seconds=0.2))

    class Sick(FakeBackend):
        looks = 0

        def status(self, job: JobDir, watch: Any) -> Any:
            type(self).looks += 1
            if self.looks < 10:
                raise OSError(number, os.strerror(number))
            return super().status(job, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_nnunet.jobs.trigger.get_backend", lambda name, **options: Sick())
        assert Watching(job).end()["phase"] == "done"


def elsewhere(workspace: Workspace) -> JobDir:
    """A job that runs on another host."""
    job = JobDir.create(make_spec(workspace, "job"))
    job.begin_attempt(expected=0)
    job.set_phase(1, Phase.RUNNING)
    state = job.path / "state.json"
    write_json(state, {**read_json(state), "host": "elsewhere"})
    return job


def test_a_jobs_folder_that_somebody_removed_is_no_outage(workspace: Workspace) -> None:
    job = elsewhere(workspace)
    os.rename(job.path, job.path.with_name("taken"))
    assert Watching(job, lost_after=0.2).end() == {"job": str(job.path), "attempt": 0, "phase": "failed"}


@pytest.mark.parametrize("where", ["triggerer", "worker"])
def test_fault_61_silence_before_an_outage_does_not_count_after_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A runner that could not write for a while before its watcher could not read has ``lost_after`` seconds from the outage's end on."""
    job = elsewhere(workspace)
    seconds = 0.0

    class Away(FakeBackend):
        def status(self, job: JobDir, watch: Watch) -> JobStatus:
            nonlocal seconds
            seconds += 1.0
            if 5 <= seconds <= 7:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if seconds == 10:
                job.finish(1, {"attempt": 1, "result": {}})
            return super().status(job, watch)

    module = "airflow_nnunet.jobs.trigger" if where == "triggerer" else "airflow_nnunet.operators.waiting"
    monkeypatch.setattr(f"{module}.Watch", partial(Watch, clock=lambda: seconds))
    if where == "triggerer":
        monkeypatch.setattr(f"{module}.get_backend", lambda name, **options: Away())
        assert Watching(job, lost_after=4.0).end()["phase"] == "done"
    else:
        monkeypatch.setattr(NnunetConfig, "make_backend", lambda config: Away())
        root = str(Path(workspace.jobs).parent)
        config = NnunetConfig.from_options({"workspace": root, "lost_after": "4", "poll_interval": "0.01"})
        task = TrainFoldOperator(task_id="task", dataset=4, configuration="2d", fold=0)
        task._stopping = False
        assert task._poll(context(), config, job)
    assert job.failure() is None
    assert seconds == 10


def test_a_wish_to_stop_is_delivered_when_the_storage_is_back(workspace: Workspace) -> None:
    job = elsewhere(workspace)
    trigger = JobTrigger(job=str(job.path), backend="fake")
    place = away(workspace)
    asyncio.run(trigger.on_kill())
    back(workspace, place)
    wait_for(job.cancel_requested, what="the wish")


def test_no_record_of_a_job_makes_a_folder_where_its_storage_is_away(workspace: Workspace) -> None:
    """It would hide the job when the share is mounted over it, or be taken for the job until then."""
    job = elsewhere(workspace)
    lost = Failure(failure_class=FailureClass.LOST, message="gone", attempt=1)
    place = away(workspace)
    changes: dict[str, Callable[[], object]] = {
        "begin_attempt": lambda: job.begin_attempt(expected=1),
        "set_phase": lambda: job.set_phase(1, Phase.RUNNING),
        "finish": lambda: job.finish(1, {"attempt": 1, "result": {}}),
        "declare_lost": lambda: job.declare_lost(1, lost),
        "say": lambda: job.say(1, "waits"),
        "note_container": lambda: job.note_container(1, {}),
        "request_cancel": lambda: job.request_cancel("stop"),
        "submit": lambda: FakeBackend().submit(job.spec()),
    }
    for name, change in changes.items():
        with pytest.raises((OSError, NotMounted)):
            change()
        assert not Path(workspace.jobs).exists(), name
    back(workspace, place)
    assert job.state().attempt == 1


@pytest.fixture
def used(workspace: Workspace) -> Workspace:
    """A workspace in which two jobs have run, so that all its roots are known to each other."""
    Path(workspace.raw, "Dataset001_A").mkdir(parents=True)
    for name in ("one", "two"):
        wait_final(backend().submit(make_spec(workspace, name, Resources(gpus=1)))).unwrap()
    return workspace


def test_fault_62_a_jobs_folder_that_is_not_mounted_is_refused_and_never_made(used: Workspace) -> None:
    place = away(used)
    for mount_point in (False, True):
        if mount_point:
            Path(used.jobs).mkdir()
        with pytest.raises(NotMounted, match="as the place of this workspace's jobs") as refused:
            backend().submit(make_spec(used, "one"))
        assert refused.value.failure_class is FailureClass.LOST
        assert "mount the share" in str(refused.value)
        assert list(Path(used.jobs).iterdir() if mount_point else ()) == []
    Path(used.jobs).rmdir()
    back(used, place)
    assert backend().submit(make_spec(used, "one")).state().phase is Phase.DONE


@pytest.mark.parametrize("root", ["raw", "results", "preprocessed"])
def test_fault_62_the_other_roots_are_checked_too(used: Workspace, root: str) -> None:
    path = Path(getattr(used, root))
    (path / "content").mkdir(parents=True, exist_ok=True)
    backend().submit(make_spec(used, "one"))
    os.rename(path, path.with_name("elsewhere"))
    path.mkdir()
    with pytest.raises(NotMounted, match=f"{root}: {path}: its marker {MARKER} is gone"):
        backend().submit(make_spec(used, "three"))
    assert list(path.iterdir()) == []
    mark_workspace(used)  # a person says that nothing is missing
    wait_final(backend().submit(make_spec(used, "three"))).unwrap()


def test_fault_62_a_whole_workspace_that_is_not_mounted_is_refused_until_it_is_mounted(tmp_path: Path) -> None:
    point = tmp_path / "share"
    point.mkdir()
    workspace = Workspace.below(point)
    spec = make_spec(workspace, "job")
    with pytest.raises(NotMounted, match="is empty and not a mount point"):
        FakeBackend().submit(spec)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        assert FakeBackend().submit(spec).state().phase is Phase.DONE, "empty, but really mounted: the first job marks it"
        subprocess.run(["umount", "-l", str(point)], check=True)
        with pytest.raises(NotMounted, match="is empty and not a mount point"):
            FakeBackend().submit(spec)
        assert list(point.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)


def test_fault_62_a_mount_point_of_fstab_with_nothing_mounted_is_refused(workspace: Workspace, tmp_path: Path, monkeypatch: Any) -> None:
    table = tmp_path / "fstab"
    table.write_text(f"# shares\nserver:/export {tmp_path} nfs defaults 0 0\n")
    monkeypatch.setattr(marker, "FSTAB", table)
    with pytest.raises(NotMounted, match=f"names the mount point {tmp_path}"):
        FakeBackend().submit(make_spec(workspace, "job"))
    assert not Path(workspace.jobs).exists()


def test_fault_62_a_memory_outside_the_share_is_asked_where_all_roots_are_away(workspace: Workspace) -> None:
    class Noted(dict[str, str]):
        recall = dict.get
        remember = dict.__setitem__

    memory = Noted()
    marker.open_workspace(workspace, memory=memory)  # type: ignore[arg-type]
    assert list(memory) == [workspace.jobs]
    root = Path(workspace.jobs).parent
    os.rename(root, root.with_name("elsewhere"))
    with pytest.raises(NotMounted, match="although jobs have run"):
        marker.open_workspace(workspace, memory=memory)  # type: ignore[arg-type]
    assert not root.exists()


def test_a_workspace_from_before_there_were_markers_is_marked_by_its_next_job(workspace: Workspace) -> None:
    job = fake(workspace, FakeOutcome())
    Path(workspace.jobs, MARKER).unlink()
    assert FakeBackend().submit(job.spec()).path == job.path
    assert Path(workspace.jobs, MARKER).is_file()


# --- full (row 64) --------------------------------------------------------------------------------------------------
def test_fault_64_jobs_wait_for_room_on_the_disk_of_the_lease_ledger(small_disk: Path, tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path / "work", leases=str(small_disk / "leases"))
    ballast = fill(small_disk)
    with no_runner_left(workspace):
        jobs = [backend().submit(make_spec(workspace, name, Resources(gpus=1))) for name in ("one", "two")]
        for job in jobs:
            wait_for(lambda job=job: "lease ledger" in job.log.read_text(), what="the job's word about the full disk")
            assert job.state().phase is Phase.WAITING
        ballast.unlink()
        assert [wait_final(job).unwrap()["attempt"] for job in jobs] == [1, 1]
    assert list((small_disk / "leases" / "tickets").iterdir()) == []


def test_fault_64_a_disk_that_fills_at_any_moment_leaks_no_entry(small_disk: Path) -> None:
    ledger = Ledger(small_disk / "leases")
    ballast = fill(small_disk)
    request = Request(kind="cpu", owner="me")
    pages = 0
    while True:  # with no page left, with one, with two ...
        lease, trouble = None, "no ticket"
        with contextlib.suppress(OSError), ledger.ticket(request) as ticket:
            trouble = ""  # from here on the full disk is no error
            lease = ticket.try_acquire(DEVICES)
            trouble = ticket.trouble
        assert list((ledger.folder / "tickets").iterdir()) == []
        assert ledger.waiting() == 0
        if lease is not None:
            lease.release()
            break
        assert trouble, "the full disk is raised where the ticket should say it"
        assert ledger.holders() == []
        assert list((ledger.folder / "leases").iterdir()) == []
        pages += 1
        os.truncate(ballast, max(0, ballast.stat().st_size - 4096))
    assert pages >= 2, "the disk was hardly full; the test proves nothing"


def test_an_unreadable_lease_is_waited_for_while_its_holder_lives_and_swept_afterwards(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "leases")
    entries = [ledger.folder / name / f"{1:020d}.json" for name in ("leases", "tickets")]
    code = "import fcntl,sys,time\nfiles=[open(name,'w') for name in sys.argv[1:]]\n[fcntl.flock(f, fcntl.LOCK_EX) for f in files]\n"
    command = ["python3", "-c", code + "print('held', flush=True)\ntime.sleep(600)", *map(str, entries)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with ledger.ticket(Request(kind="cpu", owner="me")) as ticket:
                for content in ("", "{", "[]", '{"device": "cpu-0"}'):
                    entries[0].write_text(content)
                    assert ticket.try_acquire(DEVICES) is None
                    assert "cannot be read" in ticket.trouble
                assert ledger.holders() == []
                assert ledger.waiting() == 1, "a ticket that says nothing is in nobody's way"
                holder.kill()
                holder.wait()
                lease = ticket.try_acquire(DEVICES)
            assert lease is not None
            lease.release()
        finally:
            holder.kill()  # which does nothing where it has ended; a test that fails must not wait for it
    assert not any(entry.exists() for entry in entries)


def test_a_submit_on_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    workspace = Workspace.below(small_disk)
    mark_workspace(workspace)
    ballast = fill(small_disk)
    spec = make_spec(workspace, "job")
    with pytest.raises(OSError, match="No space left"):
        JobDir.create(spec)
    assert os.listdir(workspace.jobs) == [MARKER]
    stale = Path(workspace.jobs, f".{spec.job_id}.1.abcdef.tmp")
    ballast.unlink()
    stale.mkdir()
    os.utime(stale, (0, 0))
    JobDir.create(spec)
    assert sorted(os.listdir(workspace.jobs)) == [MARKER, spec.job_id], "what a killed submitter left is swept"


def test_a_record_that_a_full_disk_cut_is_written_again(small_disk: Path, tmp_path: Path) -> None:
    from nnunet_jobs.context import StepContext

    job = JobDir(small_disk / "job")
    job.path.mkdir()
    context = StepContext(workspace=Workspace.below(tmp_path), job=job)
    context.progress("train", 1)
    ballast = fill(small_disk)
    for number in range(2, 400):
        context.progress("train", number)
    assert json.loads(job.metrics.read_text().splitlines()[0])["done"] == 1
    ballast.unlink()
    context.progress("train", 400)
    assert [record["done"] for record in job.read_metrics()[0]] == list(range(1, 401))
