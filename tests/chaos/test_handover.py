"""Leases that change hands between processes, under real faults: whoever is killed, stopped, late, fenced or cancelled, when it hurts."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.grant import Grant, offer_grant, read_grant
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.job.usage import read_usage
from nnunet_jobs.contract.storage.files import read_json, try_lock
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.lease import Holder
from nnunet_jobs.devices.leases import Ledger
from support.handover import TESTS, Forge, kill_container
from support.jobs import compile_library, is_alive, no_runner_left, wait_final, wait_for, wait_gone

GPUS = ("GPU-a", "GPU-b")
HALF = 12_000
TWO_GPUS = "".join(f"gpu {uuid} {2 * HALF} {2 * HALF} 0\n" for uuid in GPUS)
WHOLE = Resources(gpus=1, grace_s=5.0)
SHARED = Resources(gpus=1, gpu_memory_mib=HALF, grace_s=5.0)


@pytest.fixture(autouse=True)
def tidy(workspace: Workspace) -> Iterator[None]:
    with no_runner_left(workspace):
        yield


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the stand-in for libnvidia-ml."""
    folder = tmp_path_factory.mktemp("nvml")
    compile_library(TESTS / "support" / "fake_nvml.c", folder / "libnvidia-ml.so.1")
    return folder


@pytest.fixture(scope="module")
def forge(nvml: Path) -> Iterator[Forge]:
    with Forge({"LD_LIBRARY_PATH": str(nvml)}) as made:
        yield made


class Host:
    """Two GPUs of 24,000 MiB, a ledger, and jobs that are started in two processes, as a backend of containers does."""

    def __init__(self, forge: Forge, workspace: Workspace, folder: Path) -> None:
        self.forge = forge
        self.workspace = workspace
        self.folder = folder
        self.nvml = folder / "nvml.txt"
        self.nvml.write_text(TWO_GPUS)
        self.ledger = Ledger(workspace.leases)

    def job(self, name: str, resources: Resources = WHOLE, **script: str) -> JobDir:
        source = json.dumps({"busy": str(self.folder), "half": bool(resources.gpu_memory_mib), **script})
        job = JobDir.create(
            JobSpec(
                job_id=make_job_id("register", name),
                step="register",
                params={"dataset_id": 1, "name": "Test", "source": source},
                workspace=self.workspace,
                resources=resources,
            )
        )
        job.begin_attempt(expected=0)
        return job

    def grantor(self, job: JobDir, attempt: int = 1, *more: str) -> int:
        return self.forge.start("lease", job, attempt, *more, FAKE_NVML_STATE=str(self.nvml), NVIDIA_VISIBLE_DEVICES="all")

    def adopter(self, job: JobDir, attempt: int = 1, *, visible: str | None = None) -> int:
        """In a container that sees what was granted, or ``visible``."""
        if visible is None:
            grant = read_grant(job, attempt)
            visible = ",".join(grant.gpus) if grant else ""
        return self.forge.start("run", job, attempt, "--grant", FAKE_NVML_STATE=str(self.nvml), NVIDIA_VISIBLE_DEVICES=visible)

    def granted(self, job: JobDir, attempt: int = 1) -> Grant:
        found: Grant = wait_for(lambda: read_grant(job, attempt), what=f"the grant of {job}: {job.state()}")
        return found

    def owners(self) -> list[str]:
        return sorted(holder.owner for holder in self.ledger.holders())

    def is_free(self) -> None:
        """Everything is given back and swept."""
        wait_for(lambda: not self.ledger.holders() and not self.ledger.waiting(), what="leases to be given back")
        assert list((self.ledger.folder / "leases").iterdir()) == []
        assert list((self.ledger.folder / "tickets").iterdir()) == []


@pytest.fixture
def host(forge: Forge, workspace: Workspace, tmp_path: Path) -> Iterator[Host]:
    yield Host(forge, workspace, tmp_path)
    forge.kill_all()


def failure_of(job: JobDir) -> Failure:
    failure = wait_final(job).failure
    assert failure is not None, job.log.read_text()
    return failure


# --- as it should go --------------------------------------------------------------------------------------------------
def test_a_lease_is_handed_over_without_a_moment_in_which_it_counts_twice_or_not_at_all(host: Host, tmp_path: Path) -> None:
    job = host.job("goes", until=str(tmp_path / "go"))
    grantor = host.grantor(job)
    grant = host.granted(job)
    assert (grant.device, grant.gpus, grant.memory_mib) == ("cuda", ("GPU-a",), None)
    wait_for(lambda: job.state().message == "has GPU-a; waits for its container", what="the message")
    adopter = host.adopter(job)
    while job.state().phase is not Phase.RUNNING:
        assert host.owners() == [job.job_id]
        assert not job.runner_gone(), "a watcher would take the attempt for lost"
    wait_gone(grantor)
    assert job.state().pid == adopter
    assert host.owners() == [job.job_id]
    assert read_grant(job, 1) is None
    assert read_json(job.path / "adopted.json")["attempt"] == 1
    (tmp_path / "go").touch()
    assert wait_final(job).unwrap() == {"attempt": 1, "device": "cuda", "gpus": ["GPU-a"], "visible": "GPU-a", "seen": []}
    wait_gone(adopter)
    host.is_free()


def test_two_gpus_and_a_cpu_slot_are_handed_over_like_one_gpu(host: Host) -> None:
    both = host.job("both", Resources(gpus=2))
    host.grantor(both)
    assert sorted(host.granted(both).gpus) == list(GPUS)
    host.adopter(both)
    assert sorted(wait_final(both).unwrap()["gpus"]) == list(GPUS)
    host.nvml.write_text("")
    plain = host.job("plain")
    host.grantor(plain)
    grant = host.granted(plain)
    assert (grant.device, grant.gpus, grant.devices) == ("cpu", (), ("cpu-0",))
    assert host.owners() == [plain.job_id]
    host.adopter(plain)
    assert wait_final(plain).unwrap() == {"attempt": 1, "device": "cpu", "gpus": [], "visible": "", "seen": []}
    host.is_free()


def test_the_next_waits_until_the_adopter_has_ended_not_the_grantor(host: Host, tmp_path: Path) -> None:
    host.nvml.write_text(TWO_GPUS.splitlines()[0])
    first = host.job("first", until=str(tmp_path / "go"))
    grantor = host.grantor(first)
    host.granted(first)
    host.adopter(first)
    second = host.job("second")
    host.grantor(second)
    wait_gone(grantor)
    wait_for(lambda: f"held: GPU-a by {first.job_id}" in second.state().message, what="the second job to wait")
    seen = time.monotonic()
    assert read_grant(second, 1) is None
    (tmp_path / "go").touch()
    wait_final(first).unwrap()
    waited = time.monotonic() - seen
    host.granted(second)
    host.adopter(second)
    assert wait_final(second).unwrap()["gpus"] == ["GPU-a"]
    host.is_free()
    used, damaged = read_usage(host.workspace.jobs, since=dt.datetime.fromtimestamp(0, dt.UTC))
    assert sorted((item.job, item.outcome) for item in used) == sorted((job.job_id, "done") for job in (first, second))
    assert not damaged
    (mine,) = [item for item in used if item.job == second.job_id]
    assert mine.waited_s >= waited, "what the grantor waited is a part of the attempt's waiting"


def test_what_earlier_attempts_taught_counts_for_the_grant(host: Host) -> None:
    job = host.job("taught", SHARED)
    job.finish(1, Failure(failure_class=FailureClass.GPU_OOM, message="as the test asked", attempt=1, details={"gpus": ["GPU-a"]}))
    assert job.begin_attempt(expected=1) == 2
    host.grantor(job, 2)
    grant = host.granted(job, 2)
    assert (grant.gpus, grant.memory_mib) == (("GPU-b",), 2 * HALF)
    host.adopter(job, 2)
    assert wait_final(job).unwrap()["gpus"] == ["GPU-b"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [(Resources(gpus=3), "gpus=3: this host has 2"), (Resources(gpus=0), "gpus=0: this job needs no lease")],
    ids=["too-many", "none"],
)
def test_a_wrong_request_is_the_grantors_failure(host: Host, resources: Resources, message: str) -> None:
    job = host.job("wrong", resources)
    host.grantor(job)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.CONFIG
    assert message in failure.message
    host.is_free()


# --- wishes, fences, time ---------------------------------------------------------------------------------------------
def test_fault_13_a_cancelled_grantor_gives_its_place_or_its_lease_back(host: Host) -> None:
    host.nvml.write_text(TWO_GPUS.splitlines()[0])
    granted, waits = host.job("granted"), host.job("waits")
    host.grantor(granted)
    host.granted(granted)
    host.grantor(waits)
    wait_for(lambda: "waiting for 1 GPU(s)" in waits.state().message, what="waiting")
    for job in (waits, granted):
        job.request_cancel("not needed")
        failure = failure_of(job)
        assert failure.failure_class is FailureClass.INTERRUPTED
        assert failure.cancelled
        assert read_grant(job, 1) is None
    host.is_free()


def test_sigterm_to_a_grantor_is_an_interruption_that_may_be_retried(host: Host) -> None:
    job = host.job("told")
    grantor = host.grantor(job)
    host.granted(job)
    os.kill(grantor, signal.SIGTERM)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert not failure.cancelled
    host.is_free()


def test_a_fenced_grantor_goes_and_its_late_adopter_runs_nothing(host: Host) -> None:
    job = host.job("fenced")
    grantor = host.grantor(job)
    old = host.granted(job)
    lost(job, 1)
    assert job.begin_attempt(expected=1) == 2
    wait_gone(grantor)
    assert job.state().phase is Phase.SUBMITTED, "the fenced grantor wrote"
    late = host.adopter(job, 1, visible="GPU-a")
    wait_gone(late)
    host.grantor(job, 2)
    host.granted(job, 2)
    late = host.adopter(job, 1, visible="GPU-a")
    wait_gone(late)
    with pytest.raises(Exception, match="attempt 2 owns"):
        offer_grant(job, old)
    assert host.granted(job, 2).attempt == 2
    host.adopter(job, 2)
    assert wait_final(job).unwrap()["attempt"] == 2
    host.is_free()


def test_a_lease_that_nobody_adopts_is_given_back_as_lost(host: Host) -> None:
    job = host.job("forgotten")
    grantor = host.grantor(job, 1, "--handover-s", "0.2")
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.LOST
    assert "nobody started the job's container" in failure.message
    wait_gone(grantor)
    late = host.adopter(job)
    wait_gone(late)
    assert job.failure() == failure
    assert "has no grant" in job.log.read_text()
    host.is_free()


def test_a_grantor_whose_attempt_was_declared_lost_holds_nothing_for_it(host: Host) -> None:
    job = host.job("declared")
    grantor = host.grantor(job)
    host.granted(job)
    lost(job, 1)
    wait_gone(grantor)
    assert failure_of(job).message == "as a watcher says"
    host.is_free()


def test_an_adopter_is_refused_without_a_grant_and_a_grant_is_made_once(host: Host, tmp_path: Path) -> None:
    job = host.job("once", until=str(tmp_path / "go"))
    wait_gone(host.adopter(job))
    assert "has no grant" in job.log.read_text()
    first = host.grantor(job)
    host.granted(job)
    second = host.grantor(job)  # which gets the attempt's lock as soon as the first one goes, or after the adopter
    adopter = host.adopter(job)
    wait_gone(first)
    third = host.adopter(job, visible="GPU-a")
    wait_for(lambda: job.state().message == "on GPU-a", what="start")
    assert host.owners() == [job.job_id]
    assert is_alive(adopter)
    (tmp_path / "go").touch()
    wait_gone(second, third)
    assert wait_final(job).unwrap()["attempt"] == 1
    assert "has had its grant" in job.log.read_text() or "attempt 1 was not begun or is over" in job.log.read_text()
    host.is_free()


def stopped_between_locks(pid: int, host: Host, job: JobDir) -> bool:
    """Stop a process; False, and it goes on, when it was just reading the ledger or writing its state, for which all others wait."""
    os.kill(pid, signal.SIGSTOP)
    for path in (host.ledger.folder / "alloc.lock", job.path / "state.lock"):
        with open(path, "ab") as file:
            if not try_lock(file.fileno()):
                os.kill(pid, signal.SIGCONT)
                return False
    return True


# --- deaths at known moments ------------------------------------------------------------------------------------------
def test_an_adopter_whose_grantor_is_dead_asks_the_ledger_anew(host: Host, tmp_path: Path) -> None:
    job = host.job("orphan", until=str(tmp_path / "go"))
    grantor = host.grantor(job)
    host.granted(job)
    kill_container(grantor)
    wait_gone(grantor)
    assert host.owners() == []
    host.adopter(job)
    wait_for(lambda: job.state().phase is Phase.RUNNING, what="start")
    assert host.owners() == [job.job_id]
    (tmp_path / "go").touch()
    assert wait_final(job).unwrap()["gpus"] == ["GPU-a"]
    assert "ended before it was adopted; asking for it again" in job.log.read_text()
    host.is_free()


def test_an_adopter_whose_gpu_went_to_another_job_meanwhile_is_lost(host: Host) -> None:
    host.nvml.write_text(TWO_GPUS.splitlines()[0])
    job, other = host.job("robbed"), host.job("other")
    grantor = host.grantor(job)
    host.granted(job)
    kill_container(grantor)
    wait_gone(grantor)
    host.grantor(other)
    host.granted(other)
    host.adopter(job)
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.LOST
    assert "other jobs have or want it" in failure.message
    host.adopter(other)
    assert wait_final(other).unwrap()["gpus"] == ["GPU-a"]
    host.is_free()


def test_fault_24_a_stopped_grantor_keeps_its_lease_through_its_adopters_death(host: Host) -> None:
    job = host.job("stopped")
    grantor = host.grantor(job)
    grant = host.granted(job)
    wait_for(lambda: stopped_between_locks(grantor, host, job), what="a moment without a lock")
    adopter = host.adopter(job)
    wait_for(lambda: read_grant(job, 1) is None, what="the adoption")
    assert [holder.follows for holder in host.ledger.holders()] == list(grant.leases)
    kill_container(adopter)
    wait_gone(adopter)
    assert [holder.number for holder in host.ledger.holders()] == list(grant.leases)
    os.kill(grantor, signal.SIGCONT)
    lost(job, 1)
    wait_gone(grantor)
    host.is_free()


def test_fault_20_a_container_that_does_not_see_its_gpu_is_gpu_lost(host: Host) -> None:
    job = host.job("blind")
    host.grantor(job)
    host.granted(job)
    host.adopter(job, visible="GPU-b")
    failure = failure_of(job)
    assert failure.failure_class is FailureClass.GPU_LOST
    assert failure.details["gpus"] == ["GPU-a"]
    assert "does not see it (it sees ['GPU-b'])" in failure.message
    host.is_free()


def test_two_containers_share_a_gpu_whose_processes_they_cannot_tell_apart(host: Host, nvml: Path, tmp_path: Path) -> None:
    """In pid namespaces of their own, where NVML's process numbers mean nothing."""
    unshare = shutil.which("unshare")
    new = [unshare or "", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if unshare is None or subprocess.run([*new, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no pid namespace can be made here")
    host.nvml.write_text(TWO_GPUS.splitlines()[0])

    with contextlib.ExitStack() as stack:

        def contained(job: JobDir, *command: str) -> None:
            log = stack.enter_context(open(job.log, "ab"))
            environment = {
                "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "plugins"), str(TESTS)]),
                "LD_LIBRARY_PATH": str(nvml),
                "FAKE_NVML_STATE": str(host.nvml),
            }
            python = [sys.executable, "-m", "support.handover", command[0], str(job.path), "--attempt", "1", *command[1:]]
            process = subprocess.Popen([*new, *python], stdout=log, stderr=log, env={**os.environ, **environment})
            stack.callback(process.wait)
            stack.callback(process.kill)

        jobs = [host.job(name, SHARED, until=str(tmp_path / "go")) for name in ("one", "two")]
        for job in jobs:
            contained(job, "lease")
            assert host.granted(job).gpus == ("GPU-a",)
            contained(job, "run", "--grant")
            wait_for(lambda job=job: job.state().phase is Phase.RUNNING, what=f"start of {job}")
            # The first one's memory, of a process number that may be anybody's in here.
            host.nvml.write_text(f"gpu GPU-a {2 * HALF} {HALF - 300} 0\nprocess 0 1 {HALF + 300}\n")
        assert host.owners() == sorted(job.job_id for job in jobs)
        (tmp_path / "go").touch()
        for job in jobs:
            wait_final(job).unwrap()
    host.is_free()


# --- deaths at any moment ---------------------------------------------------------------------------------------------
def lost(job: JobDir, attempt: int) -> None:
    """What a watcher does whose attempt's containers are gone."""
    job.declare_lost(attempt, Failure(failure_class=FailureClass.LOST, message="as a watcher says", attempt=attempt))


def over_subscribed(holders: list[Holder]) -> list[str]:
    """GPUs that are given away more than they have."""
    bad = []
    for uuid in GPUS:
        amounts = [holder.memory_mib for holder in holders if holder.device == uuid]
        if (None in amounts and len(amounts) > 1) or sum(amount or 0 for amount in amounts) > 2 * HALF:
            bad.append(f"{uuid}: {amounts}")
    return bad


@dataclass(slots=True)
class Course:
    """A job on its way, as its backend knows it, and what is to be killed at which moment of the present attempt."""

    job: JobDir
    attempt: int = 1
    pids: dict[str, int] = field(default_factory=dict)
    victims: tuple[str, ...] = ()
    moment: str = ""
    delay_s: float = 0.0
    due: float | None = None
    call_delay_s: float = 0.0
    call_at: float | None = None

    def has_come(self) -> bool:
        """Whether the moment from which the delay counts has come."""
        return {
            "started": lambda: "grantor" in self.pids,
            "granted": lambda: read_grant(self.job, self.attempt) is not None,
            "called": lambda: "adopter" in self.pids,
            "adopted": lambda: "adopter" in self.pids and read_grant(self.job, self.attempt) is None,
        }[self.moment]()


def test_fault_23_hundreds_of_grantors_and_adopters_killed_at_any_moment_never_share_a_gpu(host: Host) -> None:
    """Four jobs on two GPUs, started again and again as a backend does, each with a death planned for a random moment.

    The ledger is looked at all the time, and each step itself occupies what it was given and fails when somebody is there.
    """
    draw = random.Random(23)
    kills = finished = looks = adopted_twice = 0
    names = iter(range(10_000))

    def begin() -> Course:
        return plan(Course(host.job(f"loop-{next(names)}", draw.choice([WHOLE, SHARED]), seconds="0.05")))

    def plan(course: Course) -> Course:
        course.pids, course.due, course.call_at = {}, None, None
        course.call_delay_s = draw.choice([0.0, 0.0, 0.7])  # a slow backend: meanwhile waiters may get what a dead grantor had
        course.victims = draw.choice([("grantor",), ("grantor",), *[("adopter",)] * 3, *[("grantor", "adopter")] * 3, ()])
        course.moment = draw.choice(["started", "granted", "called", "called", "adopted", "adopted"])
        course.delay_s = draw.random() * draw.choice([0.01, 0.05, 0.25])
        return course

    def ended(course: Course) -> bool:
        """Whether the last container of the attempt has ended; a grantor whose adopter is dead goes when it hears of the verdict."""
        last = course.pids.get("adopter") or course.pids.get("grantor")
        return last is not None and not is_alive(last) and ("adopter" in course.pids or read_grant(course.job, course.attempt) is None)

    courses = [begin() for _ in range(4)]
    while kills < 200:
        time.sleep(0.002)  # the jobs need the cores more than we
        looks += 1
        holders = host.ledger.holders()
        assert not over_subscribed(holders), holders
        for index, course in enumerate(courses):
            job, attempt = course.job, course.attempt
            if "grantor" not in course.pids:
                course.pids["grantor"] = host.grantor(job, attempt)
            if course.call_at is None and read_grant(job, attempt) is not None:
                course.call_at = time.monotonic() + course.call_delay_s
            if "adopter" not in course.pids and course.call_at is not None and time.monotonic() >= course.call_at:
                course.pids["adopter"] = host.adopter(job, attempt)
            if course.due is None and course.has_come():
                course.due = time.monotonic() + course.delay_s
            victims = [course.pids[name] for name in course.victims if name in course.pids]
            if victims and course.due is not None and time.monotonic() >= course.due:
                kills += sum(map(is_alive, victims))
                for victim in victims:
                    kill_container(victim)
                course.victims = ()
            if ended(course):
                lost(job, attempt)
                if (failure := job.failure()) is not None:
                    log = job.log.read_text() if job.log.exists() else ""  # a grantor may be killed before its first word
                    assert failure.failure_class is FailureClass.LOST, (failure, log)
                    adopted_twice += "asking for it again" in log
                    course.attempt = job.begin_attempt(expected=attempt) or 0
                    plan(course)
                else:
                    assert job.result() is not None
                    finished += 1
                    courses[index] = begin()
    for course in courses:  # the last ones may finish; nobody dies any more
        course.victims = ()
        if "adopter" not in course.pids or ended(course):
            lost(course.job, course.attempt)
    for course in courses:
        wait_gone(*course.pids.values())
    assert finished > 10, "hardly a job got through; the test proves nothing"
    assert looks > kills
    print(f"\n  {kills} kills, {finished} jobs finished, {looks} looks at the ledger, {adopted_twice} lost after asking anew")
    host.is_free()
