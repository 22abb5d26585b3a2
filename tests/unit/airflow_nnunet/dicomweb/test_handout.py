"""What is handed out to which run: each study once, none lost, whatever fails, is killed, or is more than Airflow can map."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task, task_group
from airflow.sdk.exceptions import TaskDeferred

from airflow_nnunet.dicomweb import DicomWebStudySensor
from airflow_nnunet.dicomweb.ledger import Entry, StudyLedger, ledgers
from airflow_nnunet.jobs.exceptions import JobLost
from nnunet_jobs.contract.failure import ConfigError
from support.airflow import environment
from support.airflow import run as run_python
from support.stub_archive import StubArchive
from support.study_sensor import History, first_event, run, sensor, trigger_of, uids

STUDY = "1.2.3"


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubArchive]:
    with StubArchive() as server:
        monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", server.connection())
        yield server


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda number: monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", str(number))


def studies(number: int, *, first: int = 0) -> dict[str, int]:
    return {f"{STUDY}.{first + n + 1}": 3 for n in range(number)}


def quick(**fields: Any) -> DicomWebStudySensor:
    return sensor(**{"stable_for": 0, "hold_s": 0, **fields})


def in_a_dag(*, filtered: bool = False, **fields: Any) -> DicomWebStudySensor:
    """A sensor whose list is mapped over two tasks a study, or changed by a task before it is."""
    with DAG("dag", schedule=None):
        new = quick(**fields)

        @task
        def chosen(found: list[str]) -> list[str]:
            return found[1:]

        @task
        def retrieve(uid: str) -> str:
            return uid

        @task
        def store(uid: str) -> str:
            return uid

        @task_group
        def study(uid: str) -> None:
            store(retrieve(uid))

        study.expand(uid=chosen(new.output) if filtered else new.output)
    return new


def nothing_new(work: DicomWebStudySensor, context: Any) -> bool:
    """Whether the sensor goes on waiting although the archive has answered."""

    async def waits() -> bool:
        event = asyncio.ensure_future(first_event(trigger_of(work, context)))
        done, _ = await asyncio.wait({event}, timeout=1.0)
        event.cancel()
        return not done

    return asyncio.run(waits())


# --- more than a list may hold ----------------------------------------------------------------------------------
def test_fault_63_more_studies_than_a_list_may_hold_are_handed_out_by_several_runs(history: History, archive: StubArchive) -> None:
    archive.studies = studies(1100)
    first = run(quick(), history.context())
    second = run(quick(), history.context())
    assert (len(first), len(second)) == (1024, 76)
    assert sorted({*first, *second}) == sorted(archive.studies), "none is lost, none is handed out twice"
    archive.studies |= studies(1, first=1100)
    assert run(quick(), history.context()) == [f"{STUDY}.1101"]


def test_a_sensor_that_holds_its_worker_hands_out_no_more_than_a_list_may_hold(
    history: History, archive: StubArchive, at_most: Any
) -> None:
    at_most(3)
    archive.studies = studies(5)
    first, second = (quick(deferrable=False).execute(history.context()) for _ in range(2))
    assert (len(first), len(second)) == (3, 2)
    assert sorted(first + second) == sorted(archive.studies)


def test_the_log_says_what_is_left_to_the_next_run(
    history: History, archive: StubArchive, at_most: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    at_most(3)
    archive.studies = studies(5)
    run(quick(), history.context())
    assert "3 complete studies are handed out; 2 more are left to the next run: core.max_map_length is 3" in capfd.readouterr().out


def test_all_studies_again_go_through_several_runs_too(history: History, archive: StubArchive, at_most: Any) -> None:
    at_most(3)
    archive.studies = studies(5)
    assert len(run(quick(), history.context())) == 3
    rest = run(quick(only_new=False), history.context())
    assert set(list(archive.studies)[3:]) < set(rest), "what was never handed out comes first"


def test_thousands_of_studies_are_remembered(history: History, archive: StubArchive, at_most: Any) -> None:
    at_most(10_000)
    archive.studies = studies(20)
    run(quick(), history.context())
    (ledger,) = ledgers(os.environ["AIRFLOW__NNUNET__WORKSPACE"] + "/jobs")
    with ledger.turn():
        then = {"run": "old", "state": "done", "at": "2020-01-01T00:00:00+00:00"}
        old = [Entry(study=f"1.9.{n}", instances=3, meant=3, index=n, **then) for n in range(2500)]  # type: ignore[arg-type]
        for _ in range(4):
            ledger.append(old)  # more lines than count: the file is written anew
    assert len(ledger.path.read_text().splitlines()) == 1 + 2520
    assert ledger.owner()["dag"] == "dag"
    archive.studies = {entry.study: 3 for entry in old} | archive.studies | studies(1, first=20)
    assert run(quick(), history.context()) == [f"{STUDY}.21"]


# --- what fails -------------------------------------------------------------------------------------------------
def test_a_study_whose_tasks_fail_is_handed_out_again_and_then_named(
    history: History, archive: StubArchive, capfd: pytest.CaptureFixture[str]
) -> None:
    archive.studies = studies(3)
    good, bad, skipped = archive.studies
    got: list[list[str]] = []
    for _ in range(3):
        context = history.context()
        got.append(run(in_a_dag(max_offers=3), context))
        name = context["ti"].run_id
        history.supervisor.runs[name] = "failed"
        history.supervisor.tasks[name] = {}
        for index, uid in enumerate(got[-1]):
            states = {good: ("success", "success"), bad: ("failed", "upstream_failed"), skipped: ("skipped", "skipped")}[uid]
            for task_id, state in zip(("study.retrieve", "study.store"), states, strict=True):
                history.supervisor.tasks[name][f"{task_id}_{index}"] = state
    assert got == [[good, bad, skipped], [bad], [bad]]

    capfd.readouterr()
    last = history.context()
    assert nothing_new(in_a_dag(max_offers=3), last)
    said = capfd.readouterr().out
    assert f"{bad} (run run-3)" in said
    assert "clear those tasks, or trigger a run with only_new off" in said
    assert last["ti"].pushed["given_up"] == [bad]

    archive.studies[bad] = 4
    assert run(in_a_dag(max_offers=3), history.context()) == [bad], "it has new images"


def test_a_study_that_was_given_up_is_handed_out_when_all_are_asked_for(history: History, archive: StubArchive) -> None:
    archive.studies = studies(1)
    first = history.context()
    run(quick(max_offers=1), first)
    history.supervisor.runs[first["ti"].run_id] = "failed"
    assert nothing_new(quick(max_offers=1), history.context())
    assert run(quick(max_offers=1, only_new=False), history.context()) == list(archive.studies)


def test_a_task_that_a_person_cleared_is_judged_again(history: History, archive: StubArchive) -> None:
    archive.studies = studies(1)
    first = history.context()
    run(quick(max_offers=1), first)
    history.supervisor.runs[first["ti"].run_id] = "failed"
    assert nothing_new(quick(max_offers=1), last := history.context())
    assert last["ti"].pushed["given_up"]
    history.supervisor.runs[first["ti"].run_id] = "success"
    assert nothing_new(quick(max_offers=1), last := history.context())
    assert "given_up" not in last["ti"].pushed


def test_a_failed_study_is_handed_out_again_when_its_date_has_passed(history: History, archive: StubArchive) -> None:
    archive.studies, archive.dates = studies(1), {f"{STUDY}.1": "20240110"}
    first = history.context()
    run(quick(), first)
    history.supervisor.runs[first["ti"].run_id] = "failed"
    archive.studies |= {"1.2.4": 3}
    archive.dates["1.2.4"] = "20240116"
    assert set(run(quick(lookback_days=1), history.context())) == {f"{STUDY}.1", "1.2.4"}


@pytest.mark.parametrize(
    ("state", "tasks", "again"),
    [
        ("running", {"study.retrieve_0": "failed"}, False),
        ("queued", {}, False),
        ("failed", {}, True),  # the list could not be mapped, or the sensor failed after its studies were on record
        ("failed", {"study.retrieve": "upstream_failed", "study.store": "upstream_failed"}, True),
        ("failed", {"study.retrieve_0": "success", "study.store_0": "success", "notify": "failed"}, False),
        ("success", {"study.retrieve_0": "success", "study.store_0": "failed", "notify": "success"}, True),
        ("success", {"study.retrieve_0": "success", "study.store_0": "success"}, False),
        ("success", {"study.retrieve": "skipped", "study.store": "skipped"}, False),
        ("success", {"study.retrieve_0": "success"}, False),  # before `store` was added to the DAG
        ("failed", {"study.retrieve_0": "success", "study.store_0": None}, True),
        (None, {}, True),  # the run was deleted
    ],
)
def test_the_states_of_a_studys_tasks_say_whether_it_is_done(
    history: History, archive: StubArchive, state: str | None, tasks: dict[str, str | None], again: bool
) -> None:
    archive.studies = studies(1)
    first = history.context()
    run(in_a_dag(), first)
    name = first["ti"].run_id
    if state is None:
        del history.supervisor.runs[name]
    else:
        history.supervisor.runs[name], history.supervisor.tasks[name] = state, tasks
    if again:
        assert run(in_a_dag(), history.context("later")) == list(archive.studies)
    else:
        assert nothing_new(in_a_dag(), history.context("later"))


@pytest.mark.parametrize(
    ("tasks", "again"),
    [
        ({"retrieve_0": "success", "retrieve_1": "success", "store_0": "success", "store_1": "success"}, []),
        ({"retrieve_0": "success", "retrieve_1": "success", "store_0": "success", "store_1": "failed"}, [1]),
        ({"retrieve_0": "success", "retrieve_1": "success", "store_0": "success", "store_1": None}, [1]),
        ({"retrieve_0": "success", "retrieve_1": "failed", "store": "upstream_failed"}, [0, 1]),
        ({"retrieve_0": "skipped", "retrieve_1": "success", "store_0": "failed"}, [0, 1]),  # of either, as far as anybody can tell
        ({"retrieve_0": "skipped", "retrieve_1": "success", "store_0": "success"}, []),
        ({"retrieve_0": "success", "retrieve_1": "success", "store": None}, [0, 1]),
        ({"retrieve_0": "success", "retrieve_1": "success"}, []),  # before `store` was added to the DAG
    ],
)
def test_tasks_that_are_mapped_over_results_count_too(
    history: History, archive: StubArchive, tasks: dict[str, str | None], again: list[int]
) -> None:
    """Without a task group each task is mapped over what the one before it returns."""

    def chained() -> DicomWebStudySensor:
        with DAG("dag", schedule=None):
            new = quick()

            @task
            def retrieve(uid: str) -> str:
                return uid

            @task
            def store(folder: str) -> str:
                return folder

            store.expand(folder=retrieve.expand(uid=new.output))
        return new

    archive.studies = studies(2)
    first = history.context()
    given = run(chained(), first)
    history.supervisor.runs[first["ti"].run_id] = "failed"
    history.supervisor.tasks[first["ti"].run_id] = tasks
    if again:
        assert run(chained(), history.context()) == [given[index] for index in again]
    else:
        assert nothing_new(chained(), history.context())


def test_where_a_task_changes_the_list_one_failure_is_every_studys(history: History, archive: StubArchive) -> None:
    archive.studies = studies(2)
    first = history.context()
    run(in_a_dag(filtered=True), first)
    history.supervisor.tasks[first["ti"].run_id] = {"chosen": "success", "study.retrieve_0": "success", "study.store_0": "failed"}
    assert run(in_a_dag(filtered=True), history.context()) == list(archive.studies)


# --- runs at once, retries, kills -------------------------------------------------------------------------------
def test_two_runs_at_once_share_the_studies(history: History, archive: StubArchive, at_most: Any) -> None:
    at_most(2)
    archive.studies = studies(3)
    contexts = [history.context(), history.context()]
    works = [quick(), quick()]
    events = [asyncio.run(first_event(trigger_of(work, context))) for work, context in zip(works, contexts, strict=True)]
    assert uids(events[0]) == uids(events[1]), "both have seen the same"
    deadline = time.time() + 60
    first = works[0].execute_complete(contexts[0], events[0], deadline=deadline)
    with pytest.raises(TaskDeferred) as deferred:
        works[1].execute_complete(contexts[1], events[1], deadline=deadline)
    assert deferred.value.kwargs == {"deadline": deadline}
    event = asyncio.run(first_event(deferred.value.trigger))
    second = works[1].execute_complete(contexts[1], event, deadline=deadline)
    assert (len(first), len(second)) == (2, 1)
    assert sorted(first + second) == sorted(archive.studies)


def test_a_run_that_is_retried_or_cleared_gets_what_it_got_before(history: History, archive: StubArchive) -> None:
    archive.studies = studies(3)
    first = history.context()
    got = run(quick(), first)
    archive.studies |= studies(1, first=3)
    assert quick().execute(history.context(first["ti"].run_id)) == got, "its result may not have come to Airflow"
    assert run(quick(), history.context()) == [f"{STUDY}.4"]
    assert quick(deferrable=False).execute(history.context(first["ti"].run_id)) == got


def test_a_line_that_a_kill_cut_off_costs_a_second_look_and_no_study(history: History, archive: StubArchive) -> None:
    archive.studies = studies(3)
    run(quick(), history.context())
    (ledger,) = ledgers(os.environ["AIRFLOW__NNUNET__WORKSPACE"] + "/jobs")
    text = ledger.path.read_text()
    ledger.path.write_text(text[:-20])
    assert run(quick(), history.context()) == [f"{STUDY}.3"]
    assert set(ledger.read()) == set(archive.studies)
    json.loads(ledger.path.read_text().splitlines()[-1])


def test_a_study_that_grew_by_what_was_stored_back_is_asked_about_once(history: History, archive: StubArchive) -> None:
    archive.studies, archive.meant = studies(1), {}
    (uid,) = archive.studies
    run(quick(), history.context())
    archive.meant[uid], archive.studies[uid] = 3, 4
    assert nothing_new(quick(), history.context())
    asked = len([path for path in archive.asked if path.endswith("/series")])
    assert nothing_new(quick(), history.context())
    assert len([path for path in archive.asked if path.endswith("/series")]) == asked


def test_other_tasks_queries_and_archives_have_ledgers_of_their_own(history: History, archive: StubArchive) -> None:
    archive.studies = studies(2)
    for fields in ({}, {"series_description": "*"}, {"task_id": "other"}):
        context = history.context()
        context["ti"].task_id = fields.get("task_id", "task")
        assert len(run(quick(**fields), context)) == 2
    assert len(ledgers(os.environ["AIRFLOW__NNUNET__WORKSPACE"] + "/jobs")) == 3


@pytest.mark.parametrize(("sharing", "modes"), [("private", (0o700, 0o600)), ("group", (0o770, 0o660))])
def test_only_those_who_share_the_workspace_read_the_ledger(
    history: History, archive: StubArchive, nnunet: Path, monkeypatch: pytest.MonkeyPatch, sharing: str, modes: tuple[int, int]
) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__SHARING", sharing)
    archive.studies = studies(1)
    run(quick(), history.context())
    (ledger,) = ledgers(nnunet / "jobs")
    assert (stat.S_IMODE(ledger.path.parent.stat().st_mode) & 0o777, stat.S_IMODE(ledger.path.stat().st_mode)) == modes


def test_a_share_that_is_not_mounted_does_not_make_every_study_new(history: History, archive: StubArchive, nnunet: Path) -> None:
    archive.studies = studies(1)
    (nnunet / "nnUNet_raw").mkdir(parents=True)
    run(quick(), history.context())
    (nnunet / "jobs").rename(nnunet / "elsewhere")
    with pytest.raises(JobLost, match="mount the share"):
        quick().execute(history.context())
    assert not (nnunet / "jobs").exists()
    (nnunet / "elsewhere").rename(nnunet / "jobs")
    assert nothing_new(quick(), history.context())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_jobs_folder_that_is_not_ours_is_named(history: History, nnunet: Path) -> None:
    (nnunet / "jobs").mkdir(parents=True, mode=0o500)
    with pytest.raises(Exception, match=r"\[nnunet\] jobs"):
        quick().execute(history.context())


def test_a_wrong_number_of_offers_is_an_import_error() -> None:
    with pytest.raises(ConfigError, match="max_offers=0: must be 1 or more"):
        quick(max_offers=0)


def test_a_ledger_that_is_damaged_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    ledger = StudyLedger(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(b'{"dag": "d"}\n{"study": "1"}\n\xff\xfe\n[]\n')
    assert ledger.read() == {}
    ledger.append([Entry(study="1.2", instances=1, meant=1, run="r", index=0)])
    assert list(ledger.read()) == ["1.2"]
    assert ledger.owner() == {"dag": "d"}


# --- under Airflow ----------------------------------------------------------------------------------------------
PULL = """
import os
from airflow.sdk import DAG, task, task_group
from airflow_nnunet.dicomweb import DicomWebStudySensor

with DAG("pull", schedule=None) as dag:
    new = DicomWebStudySensor(task_id="new", modality="MR", date_from="2024-01-01", stable_for=0, hold_s=0, poke_interval=0.5, timeout=2,
                              soft_fail=True, max_offers=2, deferrable=False, retries=0)

    @task(retries=0)
    def retrieve(uid):
        if uid.endswith(".5"):
            raise RuntimeError("it is broken")
        with open(os.environ["DONE"], "a") as file:
            print(uid, file=file)

    @task_group
    def study(uid):
        retrieve(uid)

    study.expand(uid=new.output)

if __name__ == "__main__":
    for number in range(4):
        run = dag.test()
        print("state", run.state, sum(ti.map_index >= 0 for ti in run.get_task_instances()))
"""


def test_a_list_that_airflow_maps_and_a_study_that_fails_for_good(archive: StubArchive, home: Path, tmp_path: Path) -> None:
    archive.studies = studies(11)
    file = home / "dags" / "pull.py"
    file.write_text(PULL)
    env = environment(home, workspace=str(tmp_path / "work"))
    env |= {"AIRFLOW__CORE__MAX_MAP_LENGTH": "8", "AIRFLOW_CONN_DICOMWEB_DEFAULT": archive.connection(), "DONE": str(tmp_path / "done")}
    done = run_python([file], env)
    states = [tuple(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("state ")]
    # without retries: a second attempt would hand out as much as can be mapped of what the first one put on record
    expected = [("failed", "8"), ("failed", "4"), ("success", "0"), ("success", "0")]
    assert states == expected, done.stdout[-3000:] + done.stderr[-3000:]
    processed = (tmp_path / "done").read_text().split()
    assert sorted(processed) == sorted(uid for uid in archive.studies if not uid.endswith(".5")), "each once, in two runs"
    assert f"{STUDY}.5 (run" in done.stdout + done.stderr, "the study that failed twice is named"
    doctor = run_python(["-m", "airflow_nnunet", "doctor"], env).stdout
    assert "studies of pull.new: 1 studies failed in every run that got them and are not handed out again: 1.2.3.5 (run" in doctor
