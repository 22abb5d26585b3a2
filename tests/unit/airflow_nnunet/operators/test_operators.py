"""From a task to a job and back: identity, attachment, results, failures, asset events."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowTaskTimeout, TaskDeferralTimeout, TaskDeferred

from airflow_nnunet.backends import FakeBackend, FakeOutcome, read_status
from airflow_nnunet.backends.fake import plausible_result
from airflow_nnunet.jobs.exceptions import InvalidConfig, InvalidData, JobCancelled, JobLost
from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.jobs.trigger import JobTrigger
from airflow_nnunet.operators import FindBestConfigOperator, RegisterDatasetOperator, TrainFoldOperator
from airflow_nnunet.operators.base import NnunetOperator
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.files import read_json
from support.airflow import context

TIMEOUT = {"error": "Trigger timeout"}


def train(**fields: Any) -> TrainFoldOperator:
    return TrainFoldOperator(task_id="task", **{"dataset": 4, "configuration": "2d", "fold": 0, **fields})


def start(task: NnunetOperator, ctx: Any, outcome: FakeOutcome) -> JobDir:
    """An earlier try's job that does as told."""
    config = resolve_config()
    return FakeBackend(script=lambda spec, attempt: outcome).submit(task.job_spec(ctx, config))


def forget(job: JobDir) -> None:
    """End a fake job that goes on forever."""
    job.request_cancel("the test is over")
    assert finished(job)


def finished(job: JobDir) -> bool:
    clock = threading.Event()
    for _ in range(500):
        if read_status(job).final:
            return True
        clock.wait(0.01)
    return False


def test_a_task_returns_its_steps_result_and_leaves_its_job_on_record(nnunet: Path) -> None:
    ctx = context(map_index=2)
    task = train(epochs="3")
    result = task.execute(ctx)
    job = JobDir(ctx["ti"].pushed[JOB_XCOM]["path"])
    assert (result["fold"], result["epochs"]) == (0, 3)
    assert job.path.parent == nnunet / "jobs"
    assert job.spec().labels == {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": "2"}
    assert ctx["ti"].pushed["_link_JobLogLink"] == f"/nnunet/jobs/{job.job_id}/log"
    assert json.loads(json.dumps(result)) == result


def test_only_a_registration_links_to_a_dataset_report(nnunet: Path, tmp_path: Path) -> None:
    linked = {}
    for task in (train(), RegisterDatasetOperator(task_id="task", dataset_id=4, name="Small", source=str(tmp_path))):
        ctx = context()
        task.execute(ctx)
        job_id = ctx["ti"].pushed[JOB_XCOM]["job_id"]
        linked[type(task)] = {key: url.removeprefix(f"/nnunet/jobs/{job_id}/") for key, url in ctx["ti"].pushed.items() if key != JOB_XCOM}
    common = {"_link_JobLogLink": "log", "_link_JobFolderLink": ""}
    assert linked[TrainFoldOperator] == common
    assert linked[RegisterDatasetOperator] == {**common, "_link_DatasetReportLink": "report"}


def test_every_link_is_known_to_airflow(nnunet: Path) -> None:
    from airflow_nnunet.plugin import NnunetPlugin
    from airflow_nnunet.provider_info import get_provider_info

    used = {f"{type(link).__module__}.{type(link).__name__}" for link in RegisterDatasetOperator.operator_extra_links}
    assert set(get_provider_info()["extra-links"]) == used
    assert {f"{type(link).__module__}.{type(link).__name__}" for link in NnunetPlugin.operator_extra_links} == used


def test_all_tries_share_a_job_and_a_clear_makes_a_new_one(nnunet: Path) -> None:
    first, retry, cleared, other = (context(), context(try_number=2), context(try_number=2, max_tries=4), context(map_index=1))
    ids = []
    for ctx in (first, retry, cleared, other):
        train().execute(ctx)
        ids.append(ctx["ti"].pushed[JOB_XCOM]["job_id"])
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_fault_11_a_cleared_task_that_had_succeeded_really_runs_again(nnunet: Path) -> None:
    before, after = context(), context(try_number=2, max_tries=4)
    for ctx in (before, after):
        train().execute(ctx)
    jobs = [JobDir(ctx["ti"].pushed[JOB_XCOM]["path"]) for ctx in (before, after)]
    assert [job.state().attempt for job in jobs] == [1, 1]


def test_fault_01_a_retry_attaches_to_the_living_job(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(forever=True))
    with pytest.raises(TaskDeferred) as deferred:
        train().execute(context(try_number=2))
    trigger = deferred.value.trigger
    assert isinstance(trigger, JobTrigger)
    assert trigger.job == str(job.path)
    assert job.state().attempt == 1
    forget(job)


@pytest.mark.parametrize("outcome", [FakeOutcome(seconds=0.3, result={"dice": 0.9}), FakeOutcome(seconds=0.3, failure=FailureClass.DATA)])
def test_a_job_that_ends_soon_is_waited_for_in_the_worker_and_never_defers(
    nnunet: Path, outcome: FakeOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends within seconds of a deferral can cost a retry, and without retries the task (apache/airflow 72716)."""
    monkeypatch.setenv("AIRFLOW__NNUNET__DEFER_AFTER", "30")
    ctx = context()
    start(train(), ctx, outcome)
    if outcome.failure:
        with pytest.raises(InvalidData):
            train(retries=0).execute(ctx)
    else:
        assert train(retries=0).execute(ctx) == {"dice": 0.9}


def test_a_job_that_goes_on_defers_and_its_trigger_shows_what_the_worker_has_not_shown(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(forever=True, records=[{"phase": "train", "done": 1}]))
    with pytest.raises(TaskDeferred) as deferred:
        train().execute(ctx)
    trigger = deferred.value.trigger
    assert isinstance(trigger, JobTrigger)
    assert (trigger.metrics_offset, trigger.log_offset) == (job.metrics.stat().st_size, job.log.stat().st_size)
    assert trigger.hold_s == resolve_config().defer_after
    forget(job)


def test_fault_62_a_task_whose_workspace_is_not_mounted_fails_as_lost_storage_and_makes_nothing(
    nnunet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__LOST_AFTER", "0.5")
    train().execute(context())
    (nnunet / "nnUNet_raw" / "Dataset004_A").mkdir(parents=True)
    train().execute(context(run_id="second"))  # by which raw is marked too
    (nnunet / "jobs").rename(nnunet / "elsewhere")
    for task in (train(), train(deferrable=False)):
        with pytest.raises(JobLost, match="mount the share") as lost:
            task.execute(context(try_number=2))
        assert lost.value.failure_class.retryable
    assert not (nnunet / "jobs").exists()


def test_fault_61_a_task_that_comes_back_while_the_storage_is_away_waits_for_it(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(result={"dice": 0.9}))
    (nnunet / "jobs").rename(nnunet / "elsewhere")
    back = threading.Timer(1.0, lambda: (nnunet / "elsewhere").rename(nnunet / "jobs"))
    back.start()
    assert train().execute_complete(ctx, {"job": str(job.path)}) == {"dice": 0.9}
    back.join()


def test_fault_10_a_submit_that_died_before_the_first_record_is_found_again(nnunet: Path) -> None:
    task = train()
    spec = task.job_spec(context(), resolve_config())
    JobDir.create(spec)  # and no more: the submitter is gone
    ctx = context(try_number=2)
    assert task.execute(ctx)["fold"] == 0
    assert ctx["ti"].pushed[JOB_XCOM]["job_id"] == spec.job_id
    assert len(list((nnunet / "jobs").glob("[!.]*"))) == 1


def test_fault_12_the_result_is_there_after_attaching_to_a_job_that_ended_meanwhile(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(result={"dice": 0.9}))
    assert train().execute(context(try_number=2)) == {"dice": 0.9}
    assert train().execute_complete(ctx, {"job": str(job.path), "attempt": 1, "phase": "done"}) == {"dice": 0.9}


def test_without_deferral_the_task_waits_itself_and_shows_progress(nnunet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctx = context()
    record = {"phase": "train", "done": 3, "total": 4, "dice": 0.712, "eta_s": 12.0}
    start(train(), ctx, FakeOutcome(seconds=0.3, result={"dice": 0.9}, records=[record]))
    assert train(deferrable=False).execute(ctx) == {"dice": 0.9}
    assert "train 3/4  dice 0.712  eta 12 s" in capsys.readouterr().out


def test_a_failure_is_raised_by_class_with_the_faults_and_the_place_to_look(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(failure=FailureClass.DATA, message="2 faults in 1 case"))
    with pytest.raises(InvalidData, match="2 faults in 1 case") as caught:
        train().execute_complete(ctx, {"job": str(job.path)})
    assert str(job.path) in str(caught.value)


def test_a_lost_attempt_is_raised_and_the_next_try_begins_a_new_attempt(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(lost=True, seconds=0.05))
    with pytest.raises(JobLost):
        train(deferrable=False).execute(ctx)
    assert train().execute(context(try_number=2))["fold"] == 0
    assert job.state().attempt == 2


def test_wrong_rendered_fields_and_settings_fail_as_config(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = train(epochs="{{ params.epochs }}")
    task.epochs = "many"
    with pytest.raises(InvalidConfig, match="epochs='many'"):
        task.execute(context())
    monkeypatch.setenv("AIRFLOW__NNUNET__BACKEND", "cloud")
    with pytest.raises(InvalidConfig, match="backend='cloud'"):
        train().execute(context())
    assert not (nnunet / "jobs").exists()


def test_what_runs_from_before_a_clear_is_cancelled(nnunet: Path) -> None:
    job = start(train(), context(), FakeOutcome(forever=True))
    train().execute(context(try_number=2, max_tries=4))
    assert finished(job)
    failure = job.failure()
    assert failure is not None
    assert failure.cancelled


def test_a_job_that_is_still_stopping_is_waited_for_before_the_next_attempt(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(forever=True))
    job.request_cancel("execution timeout")
    # The cancel wish may be obeyed before or after the next try looks; both must end in a second attempt with a result.
    assert train(deferrable=False).execute(context(try_number=2))["fold"] == 0
    assert job.state().attempt == 2
    assert job.cancel_requested() is None


def test_fault_14_an_execution_timeout_while_deferred_cancels_the_job(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(forever=True))
    with pytest.raises(TaskDeferralTimeout):
        train().resume_execution("__fail__", TIMEOUT, ctx)
    assert finished(job)
    assert read_status(job).failure is not None


class Impatient(TrainFoldOperator):
    """Gets Airflow's timeout, which is a signal, at its first line of progress."""

    template_fields = TrainFoldOperator.template_fields

    @property
    def log(self) -> Any:
        raise AirflowTaskTimeout("timed out")


def test_fault_14_an_execution_timeout_while_polling_cancels_the_job(nnunet: Path) -> None:
    ctx = context()
    task = Impatient(task_id="task", dataset=4, configuration="2d", fold=0, deferrable=False)
    job = start(task, ctx, FakeOutcome(forever=True))
    config = resolve_config()
    task._stopping = False
    with pytest.raises(AirflowTaskTimeout):
        task._poll(ctx, config, job)
    assert finished(job)


def test_a_cancelled_job_fails_for_good(nnunet: Path) -> None:
    ctx = context()
    job = start(train(), ctx, FakeOutcome(forever=True))
    forget(job)
    with pytest.raises(JobCancelled, match="the test is over"):
        train().execute_complete(ctx, {"job": str(job.path)})


def test_killing_the_task_process_leaves_the_job_alone(nnunet: Path) -> None:
    ctx = context()
    task = train()
    job = start(task, ctx, FakeOutcome(forever=True))
    task.on_kill()
    assert job.cancel_requested() is None
    forget(job)


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [
        *((state, False) for state in ("running", "up_for_retry", "scheduled", "queued", "up_for_reschedule", "deferred")),
        *((state, True) for state in ("failed", "success", "skipped", "restarting", None)),
    ],
)
def test_a_stopping_task_cancels_its_job_only_when_a_user_ended_it(
    nnunet: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, cancelled: bool
) -> None:
    """Missed heartbeats or a message delivered twice end a task process too; then another try wants the job."""
    monkeypatch.setattr("airflow_nnunet.operators.waiting.task_state", lambda ti: state)  # Airflow's database
    ctx = context()
    task = train(deferrable=False)
    job = start(task, ctx, FakeOutcome(forever=True))
    task.on_kill()
    with pytest.raises(JobCancelled if cancelled else AirflowRescheduleException):
        task._poll(ctx, resolve_config(), job)
    assert (job.cancel_requested() is not None) is cancelled
    forget(job)


def usual_result(task: NnunetOperator, ctx: Any, **changes: Any) -> dict[str, Any]:
    """What the fake backend says of the task's job, with changes."""
    return {**plausible_result(task.job_spec(ctx, resolve_config())), **changes}


@pytest.mark.parametrize(("already_done", "events"), [(False, ["nnunet://dataset/Dataset004_Hip"]), (True, [])])
def test_a_dataset_event_is_sent_only_when_the_content_changed(nnunet: Path, already_done: bool, events: list[str]) -> None:
    ctx = context()
    task = RegisterDatasetOperator(task_id="task", dataset_id=4, name="Hip", source="/in")
    start(task, ctx, FakeOutcome(result=usual_result(task, ctx, already_done=already_done)))
    task.execute(ctx)
    assert [uri for uri, _ in ctx["outlet_events"].sent] == events


@pytest.mark.parametrize(("promoted", "events"), [(True, [("nnunet://model/Dataset004_Hip", "m1")]), (False, [])])
def test_a_model_event_is_sent_only_when_it_was_promoted(nnunet: Path, promoted: bool, events: list[tuple[str, str]]) -> None:
    ctx = context()
    task = FindBestConfigOperator(task_id="task", dataset=4)
    start(task, ctx, FakeOutcome(result=usual_result(task, ctx, dataset="Dataset004_Hip", model="m1", promoted=promoted)))
    task.execute(ctx)
    assert [(uri, extra["model"]) for uri, extra in ctx["outlet_events"].sent] == events


def test_a_result_without_a_key_that_is_needed_fails_at_once_and_for_good(nnunet: Path) -> None:
    ctx = context()
    task = FindBestConfigOperator(task_id="task", dataset=4)
    start(task, ctx, FakeOutcome(result={"dataset": "Dataset004_Hip", "model": "m1", "promoted": True}))
    with pytest.raises(InvalidConfig, match="result of find_best_config: choice is missing; it has dataset, model, promoted"):
        task.execute(ctx)
    assert ctx["outlet_events"].sent == []


def test_a_job_file_holds_no_secret_of_airflow(nnunet: Path) -> None:
    ctx = context()
    train().execute(ctx)
    text = json.dumps(read_json(Path(ctx["ti"].pushed[JOB_XCOM]["path"]) / "spec.json"))
    assert "sqlite" not in text
    assert "fernet" not in text.lower()
