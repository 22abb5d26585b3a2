"""One suite for every backend: what submit, status and cancel promise, whatever the jobs run on."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import Backend, FakeBackend, FakeOutcome, JobStatus, Watch, get_backend
from nnunet_jobs.contract.failure import ConfigError, DataError, FailureClass, JobError, Lost
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources
from nnunet_jobs.contract.job.state import Phase
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from support.containers import docker_backend, give_workspace, pretend_container, remove_containers
from support.jobs import backend as local_backend
from support.jobs import make_spec, no_runner_left, wait_for


def fake_script(spec: JobSpec, attempt: int) -> FakeOutcome:
    """The fake's reading of the scripts that the local backend's steps obey."""
    script = json.loads(spec.params["source"])
    if "fail_first" in script and attempt == 1:
        return FakeOutcome(failure=FailureClass(script["fail_first"]))
    return FakeOutcome(
        result={"attempt": attempt},
        failure=FailureClass(script["raise"]) if "raise" in script else None,
        records=[{"phase": "train", "done": number + 1} for number in range(script.get("records", 0))],
        forever="until" in script,
        lost="kill_runner" in script,
    )


@dataclass
class Bench:
    """A backend with its workspace."""

    backend: Backend
    workspace: Workspace
    elsewhere: Callable[[JobDir], None] = lambda job: None
    """Make a place look as if it ran a job's first attempt, on a host of which nothing more is heard."""
    scratch: Path = Path()
    """Folder that the tests and their steps both can write to."""

    def submit(self, name: str, **script: Any) -> JobDir:
        return self.backend.submit(make_spec(self.workspace, name, Resources(grace_s=5.0), **script))

    def end(self, job: JobDir) -> JobStatus:
        watch = Watch()
        return wait_for(lambda: (status := self.backend.status(job, watch)).final and status, what=f"end of {job}")

    def begun(self, job: JobDir) -> JobDir:
        wait_for(lambda: job.state().phase is Phase.RUNNING, what=f"start of {job}")
        return job


# A backend of another distribution, with its options as JSON; CONTRIBUTING.md says how to set them.
OTHER = os.environ.get("NNUNET_TEST_BACKEND")
OTHER_OPTIONS = json.loads(os.environ.get("NNUNET_TEST_BACKEND_OPTIONS", "{}"))


@pytest.fixture(params=["local", "fake", "docker", "kubernetes", *filter(None, [OTHER])])
def bench(request: pytest.FixtureRequest, workspace: Workspace, tmp_path: Path) -> Iterator[Bench]:
    with no_runner_left(workspace), contextlib.ExitStack() as stack:
        bench = Bench(FakeBackend(script=fake_script), workspace, scratch=tmp_path)
        if request.param == "local":
            bench.backend = local_backend()
        elif request.param == "docker":
            engine = request.getfixturevalue("engine")
            give_workspace(workspace)
            bench.backend = docker_backend(engine)
            bench.elsewhere = partial(pretend_container, engine)
            bench.scratch = Path(workspace.raw)
        elif request.param == "kubernetes":
            pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")
            from support.pods import kubernetes_bench

            bench.backend, bench.elsewhere = stack.enter_context(kubernetes_bench(tmp_path, workspace))
        elif request.param == OTHER:
            bench.backend = get_backend(OTHER, **OTHER_OPTIONS)
        yield bench
        for path in Path(workspace.jobs).glob("[a-z]*"):
            JobDir(path).request_cancel("the test is over")
        if request.param == "docker":
            remove_containers(engine)


def test_a_job_returns_its_result(bench: Bench) -> None:
    job = bench.submit("success")
    status = bench.end(job)
    assert status.phase is Phase.DONE
    assert status.unwrap()["attempt"] == 1
    whole = job.result()
    assert whole is not None
    assert {"attempt", "result", "seconds", "device", "gpus"} <= whole.keys()


def test_a_finished_job_is_found_again(bench: Bench) -> None:
    job = bench.submit("twice")
    bench.end(job)
    again = bench.submit("twice")
    assert again.path == job.path
    assert again.state().attempt == 1
    assert bench.backend.status(again, Watch()).unwrap() == {"attempt": 1} | bench.backend.status(job, Watch()).unwrap()


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_a_failure_keeps_its_class(bench: Bench, failure_class: FailureClass) -> None:
    status = bench.end(bench.submit(f"failure-{failure_class}", **{"raise": failure_class}))
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert status.failure.failure_class is failure_class
    assert not status.failure.cancelled
    assert status.failure.message == "as the test asked"


def test_unwrap_raises_by_class(bench: Bench) -> None:
    with pytest.raises(DataError, match="as the test asked"):
        bench.end(bench.submit("unwrap", **{"raise": "data"})).unwrap()


def test_a_submit_after_a_failure_begins_the_next_attempt(bench: Bench) -> None:
    job = bench.submit("again", fail_first="bug")
    assert bench.end(job).failure is not None
    bench.submit("again", fail_first="bug")
    assert bench.end(job).unwrap()["attempt"] == 2
    assert [failure.attempt for failure in job.earlier_failures()] == [1]


def test_progress_is_read_piece_by_piece(bench: Bench) -> None:
    job = bench.submit("progress", records=3)
    bench.end(job)
    records, offset = job.read_metrics()
    assert [record["done"] for record in records] == [1, 2, 3]
    assert job.read_metrics(offset) == ([], offset)
    assert job.read_log(0)[0]


def test_a_running_job_is_attached_to(bench: Bench) -> None:
    job = bench.begun(bench.submit("attach", until=str(bench.scratch / "never")))
    beat = job.beat()
    assert bench.submit("attach", until=str(bench.scratch / "never")).state().attempt == 1
    wait_for(lambda: job.beat() > beat, what="the heartbeat")
    assert not bench.backend.status(job, Watch()).final


def test_cancel_stops_the_job_and_says_so(bench: Bench) -> None:
    job = bench.begun(bench.submit("cancel", until=str(bench.scratch / "never")))
    bench.backend.cancel(job, "marked failed by a user")
    failure = bench.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert failure.cancelled
    assert "marked failed by a user" in failure.message


def test_a_submit_after_cancel_begins_anew(bench: Bench) -> None:
    job = bench.begun(bench.submit("anew", until=str(bench.scratch / "never")))
    bench.backend.cancel(job, "cleared")
    bench.submit("anew", until=str(bench.scratch / "never"))
    wait_for(lambda: job.state().attempt == 2 and job.state().phase is Phase.RUNNING, what="the second attempt")
    assert job.cancel_requested() is None


def test_a_vanished_runner_is_lost_and_replaced(bench: Bench) -> None:
    job = bench.submit("lost", kill_runner=True)
    failure = bench.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.LOST
    assert bench.submit("lost", kill_runner=True).state().attempt == 2


def test_a_beating_heart_is_never_lost(bench: Bench) -> None:
    job = bench.begun(bench.submit("silent", until=str(bench.scratch / "never")))
    now = [0.0]
    watch = Watch(lost_after_s=60, clock=lambda: now[0])
    for _ in range(3):  # while it beats, no time is too long
        now[0] += 1000
        seen = job.beat()
        wait_for(lambda seen=seen: job.beat() > seen, what="the heartbeat")
        assert not bench.backend.status(job, watch).final


def test_a_runner_on_a_host_that_vanished_is_lost_after_the_limit(bench: Bench) -> None:
    job = JobDir.create(make_spec(bench.workspace, "elsewhere"))
    assert job.begin_attempt(expected=0) == 1
    job.set_phase(1, Phase.RUNNING)
    state = read_json(job.path / "state.json")
    write_json(job.path / "state.json", {**state, "host": "host-that-vanished"})
    bench.elsewhere(job)
    now = [0.0]
    watch = Watch(lost_after_s=60, clock=lambda: now[0])
    now[0] += 3600  # the watcher itself slept: that is not the runner's silence
    assert not bench.backend.status(job, watch).final
    for _ in range(3):
        now[0] += 15
        assert not bench.backend.status(job, watch).final
    now[0] += 15
    failure = bench.backend.status(job, watch).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.LOST
    assert bench.submit("elsewhere").state().attempt == 2


def test_twenty_submits_at_once_start_one_runner(bench: Bench) -> None:
    errors: list[BaseException] = []
    gate = threading.Barrier(20)

    def submit() -> None:
        try:
            gate.wait()
            bench.submit("race", until=str(bench.scratch / "go"), note=str(bench.scratch / "note"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=submit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    job = bench.submit("race", until=str(bench.scratch / "go"), note=str(bench.scratch / "note"))
    assert job.state().attempt == 1
    if bench.backend.name != "fake":
        wait_for((bench.scratch / "note").exists, what="the step")
        (bench.scratch / "go").touch()
        assert bench.end(job).unwrap()["attempt"] == 1
        assert len((bench.scratch / "note").read_text().splitlines()) == 1


def test_another_step_under_the_same_id_is_refused(bench: Bench) -> None:
    job = bench.submit("clash")
    bench.end(job)
    other = JobSpec(job_id=job.job_id, step="preprocess", params={"datasets": [1]}, workspace=bench.workspace)
    with pytest.raises(ConfigError, match="holds a register job"):
        bench.backend.submit(other)


def test_fault_10_death_between_submit_and_first_record_is_healed(bench: Bench) -> None:
    spec = make_spec(bench.workspace, "stillborn")
    job = JobDir.create(spec)
    assert job.begin_attempt(expected=0) == 1  # the submitter dies here, before any runner
    again = bench.backend.submit(spec)
    assert again.path == job.path
    assert bench.end(again).unwrap()["attempt"] == 2


@pytest.mark.parametrize("error", [ConfigError(field="queue", value="night", problem="there is none"), Lost("the queue is full")])
def test_an_attempt_that_cannot_be_started_fails_with_the_reason(workspace: Workspace, error: JobError) -> None:
    class Refused(Backend):
        name = "refused"

        def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
            raise error

    job = Refused().submit(make_spec(workspace, "refused"))
    failure = Refused().status(job, Watch()).failure
    assert failure is not None
    assert (failure.failure_class, failure.message, failure.attempt) == (error.failure_class, str(error), 1)
    assert Refused().submit(make_spec(workspace, "refused")).state().attempt == 2


def test_backends_are_found_by_name() -> None:
    assert get_backend("local").name == "local"
    assert get_backend("fake").name == "fake"
    with pytest.raises(ConfigError, match="backend='slurm': must be one of docker, fake, kubernetes, local"):
        get_backend("slurm")
    with pytest.raises(ConfigError, match="gpu"):
        get_backend("local", gpu=1)


def test_the_fake_gives_results_that_look_real(workspace: Workspace) -> None:
    backend = FakeBackend()
    params: dict[str, dict[str, Any]] = {
        "register": {"dataset_id": 4, "name": "Hippocampus", "source": "/data"},
        "preprocess": {"datasets": [4]},
        "train": {"dataset": 4, "configuration": "2d", "fold": 0},
        "find_best_config": {"dataset": 4},
        "predict": {"dataset": 4, "cases": "holdout", "output": "/out"},
    }
    for step, values in params.items():
        spec = JobSpec(job_id=f"fake-job-{step.replace('_', '-')}", step=step, params=values, workspace=workspace)
        result = backend.status(backend.submit(spec), Watch()).unwrap()
        assert result["dataset"].startswith("Dataset004")
