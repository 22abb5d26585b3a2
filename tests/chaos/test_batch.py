"""What cases may do to a batch: kill the process that reads them, be half a file, or be under way when the job is killed."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devtools.testbed.serving import PROJECT, make_image, make_workspace
from nnunet_jobs import processes
from nnunet_jobs.contract.failure import Bug, DataError
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from support.batches import ABORT_CHECK, ABORT_ITK, ABORT_JOB, ABORT_ONCE, finish_job, make_small_cases, poison, predict, reasons, start_job
from support.foreign_warnings import FOREIGN_WARNINGS
from support.jobs import wait_for

FIX = "write its files again, or allow it more memory if they are large"
pytestmark = FOREIGN_WARNINGS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("batch") / "work")


@pytest.fixture
def incoming(home: Workspace, tmp_path: Path) -> Path:
    """Four good cases, a to d, below an allowed root."""
    folder = Path(home.input_roots[0]) / tmp_path.name
    folder.mkdir()
    for number, case in enumerate("abcd"):
        make_image(folder / f"{case}_0000.nii.gz", seed=number)
    return folder


def statuses(result: dict) -> dict[str, str]:
    return {case: entry["status"] for case, entry in read_json(Path(result["predictions"]))["cases"].items()}


def test_fault_44_a_case_that_kills_its_reader_is_isolated_at_once(
    home: Workspace, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(PROJECT / "tests" / "support" / "reader_hooks"), os.environ.get("PYTHONPATH", "")])
    )
    poison(incoming / "b_0000.nii.gz", ABORT_CHECK)
    result = predict(home, incoming, tmp_path.name)
    assert reasons(result) == {"b": f"reader_crashed: its reader died of signal {signal.SIGABRT.value}; {FIX}"}
    assert statuses(result) == {"a": "predicted", "b": "failed", "c": "predicted", "d": "predicted"}
    assert result["predicted"] == 3
    assert not [pid for pid in processes.descendants(os.getpid()) if b"prediction.reader" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_readers_that_cannot_start_are_no_fault_of_the_cases(
    home: Workspace, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(Bug, match="ended with code 7"):
        predict(home, incoming, tmp_path.name)


def test_a_part_of_broken_cases_alone_is_no_failure_but_a_batch_of_them_is(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    for case in "ab":
        (incoming / f"{case}_0000.nii.gz").write_bytes(b"no image, and so a case of unknown size")
    results = [predict(home, incoming, tmp_path.name, part=part, parts=4) for part in range(4)]
    assert sorted(len(result["failed"]) for result in results) == [0, 0, 1, 1]
    assert sorted(result["predicted"] for result in results) == [0, 0, 1, 1]
    assert list(statuses(results[-1]).values()) == ["failed", "failed", "predicted", "predicted"]
    for case in "cd":
        (incoming / f"{case}_0000.nii.gz").unlink()
    assert len(predict(home, incoming, f"{tmp_path.name}-none", part=0, parts=2)["failed"]) == 1
    with pytest.raises(DataError, match="none of 1 cases"):
        predict(home, incoming, f"{tmp_path.name}-none", part=1, parts=2)


def test_fault_44_a_case_that_kills_the_job_costs_one_attempt(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    poison(incoming / "b_0000.nii.gz", ABORT_ITK)
    code, _ = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
    assert code == -signal.SIGABRT
    code, result = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
    assert code == 0
    assert list(reasons(result)) == ["b"]
    assert "reader_crashed" in reasons(result)["b"]
    assert statuses(result) == {"a": "predicted", "b": "failed", "c": "predicted", "d": "predicted"}
    assert result["predicted"] + result["already_done"] == 3
    shutil.copy(incoming / "a_0000.nii.gz", incoming / "b_0000.nii.gz")  # fixed: tried like any other
    assert predict(home, incoming, tmp_path.name)["predicted"] == 1


def test_a_case_that_kills_two_attempts_is_given_up_after_all_others(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    poison(incoming / "a_0000.nii.gz", ABORT_JOB)
    output = Path(home.output_roots[0]) / tmp_path.name
    for done in (set(), {"b", "c", "d"}):
        code, _ = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
        assert code == -signal.SIGABRT
        assert {path.name.removesuffix(".nii.gz") for path in output.glob("*.nii.gz")} >= done
    code, result = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
    assert code == 0
    assert "2 attempts ended" in reasons(result)["a"]
    assert statuses(result) == {"a": "failed", "b": "predicted", "c": "predicted", "d": "predicted"}
    assert not list(output.rglob("*.reading/*"))


def test_fault_66_parts_of_one_output_folder_predict_every_case(home: Workspace, tmp_path: Path) -> None:
    names = make_small_cases(Path(home.input_roots[0]) / tmp_path.name, 200)
    with ThreadPoolExecutor(4) as pool:
        parts = [
            pool.submit(predict, home, Path(home.input_roots[0]) / tmp_path.name, tmp_path.name, part=part, parts=4, contact_sheet=False)
            for part in range(4)
        ]
        results = [part.result() for part in parts]
    assert [result["failed"] for result in results] == [[], [], [], []]
    assert sum(result["predicted"] for result in results) == 200
    assert statuses(results[-1]).keys() <= set(names)
    assert {path.name.removesuffix(".nii.gz") for path in Path(results[0]["output"]).glob("*.nii.gz")} == set(names)


def test_a_missing_file_of_the_jobs_own_fails_the_task_and_blames_no_case(home: Workspace, tmp_path: Path) -> None:
    folder = Path(home.input_roots[0]) / tmp_path.name
    make_small_cases(folder, 12)
    roots, over = Path(home.output_roots[0]), threading.Event()
    names = [f"{tmp_path.name}-{number}" for number in range(20)]

    def remove() -> None:
        while not over.is_set():
            for name in names:
                for markers in (roots / name / "models").glob("*/.cases/*.reading"):
                    with contextlib.suppress(OSError):  # a marker is in it
                        markers.rmdir()

    stranger = threading.Thread(target=remove)
    stranger.start()
    struck = said = ""
    try:
        for name in names:  # on a busy machine the stranger may come too late for one of them
            try:
                predict(home, folder, name)
            except Bug as error:
                struck, said = name, str(error)
                break
    finally:
        over.set()
        stranger.join()
    assert "a file of the job could not be used" in said, "empty: the folder was never missed"
    assert not [path for path in (roots / struck).glob("models/*/.cases/*.json") if read_json(path)["status"] == "failed"]
    assert predict(home, folder, struck)["failed"] == []


def test_more_failures_than_allowed_fail_the_task_when_the_others_are_predicted(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    for case in "ac":
        (incoming / f"{case}_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"max_failed=1: 2 of 4 cases failed") as failure:
        predict(home, incoming, tmp_path.name, max_failed=1)
    assert [fault.case for fault in failure.value.faults] == ["a", "c"]
    assert [path.name for path in sorted((Path(home.output_roots[0]) / tmp_path.name).glob("*.nii.gz"))] == ["b.nii.gz", "d.nii.gz"]
    assert len(predict(home, incoming, tmp_path.name, max_failed=2)["failed"]) == 2

    def outcome(part: int) -> str:
        try:
            return f"{len(predict(home, incoming, f'{tmp_path.name}-parts', part=part, parts=4, max_failed=1)['failed'])} failed"
        except DataError as error:
            return str(error)

    good, last = [outcome(part) for part in range(3)], outcome(3)
    told = [words for words in (*good, last) if "max_failed" in words]
    assert sorted(words for words in (*good, last) if "max_failed" not in words) == ["0 failed", "0 failed", "1 failed"]
    assert ["2 of 4 cases failed, 1 of them in this part" in words for words in told] == [True]


def test_fault_42_a_thousand_cases_with_a_broken_one_a_reader_crash_and_a_killed_job(
    home: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = tmp_path / "crashed"
    monkeypatch.setenv("READER_ABORTED_FILE", str(crashed))
    folder = Path(home.input_roots[0]) / tmp_path.name
    names = make_small_cases(folder, 1000)
    truncated, unlucky = folder / f"{names[123]}_0000.nii.gz", folder / f"{names[456]}_0000.nii.gz"
    for path in (truncated, unlucky):
        own = path.read_bytes()
        path.unlink()  # the others are links to the same bytes
        path.write_bytes(own)
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    poison(unlucky, ABORT_ONCE)
    output = Path(home.output_roots[0]) / tmp_path.name

    jobs = [start_job(home, folder, tmp_path.name, hooks="reader_hooks", part=part, parts=2) for part in (0, 1)]
    try:
        wait_for(lambda: jobs[0].poll() is not None or len(list(output.glob("*.nii.gz"))) > 300, timeout_s=240, what="300 predictions")
        jobs[0].kill()
        assert finish_job(jobs[0])[0] == -signal.SIGKILL
        code, other = finish_job(jobs[1])
        assert code == 0
    finally:
        for job in jobs:
            job.kill()
            job.communicate()

    (plan,) = (read_json(path)["cases"] for path in (output / "newest" / ".cases" / ".parts").glob("*.json"))
    ours = {case for case, (part, _) in plan.items() if part == 0}
    assert set(plan) == set(names)
    assert 400 < len(ours) < 600
    recorded = {case for case in ours if (output / "newest" / ".cases" / f"{case}.json").exists() and (output / f"{case}.nii.gz").exists()}
    half = sorted(recorded)[0]
    written = output / f"{half}.nii.gz"
    written.write_bytes(written.read_bytes()[:100])  # as stock nnU-Net leaves one behind
    finished = {case: (output / f"{case}.nii.gz").stat() for case in recorded - {half}}
    assert 50 < len(finished) < len(ours) - 1

    code, ended = finish_job(start_job(home, folder, tmp_path.name, hooks="reader_hooks", part=0, parts=2))
    assert code == 0
    bad = {names[123]}
    assert crashed.exists()
    failures = {**reasons(other), **reasons(ended)}
    assert set(failures) == bad
    assert "truncated" in failures[names[123]]
    assert (ended["predicted"], ended["already_done"]) == (len(ours - bad) - len(finished), len(finished))
    assert (other["predicted"], other["already_done"]) == (1000 - len(ours) - len(bad - ours), 0)
    untouched = {case: (output / f"{case}.nii.gz").stat() for case in finished}
    assert {case: (stat.st_ino, stat.st_mtime_ns) for case, stat in untouched.items()} == {
        case: (stat.st_ino, stat.st_mtime_ns) for case, stat in finished.items()
    }
    summary = read_json(output / "predictions.json")
    assert (summary["predicted"], summary["failed"], len(summary["cases"])) == (999, 1, 1000)
    assert {path.name.removesuffix(".nii.gz") for path in output.glob("*.nii.gz")} == set(names) - bad
    with open(output / "predictions.csv", newline="") as file:
        assert Counter(line["status"] for line in csv.DictReader(file)) == {"predicted": 999, "failed": 1}
    assert (output / "contact-sheet.html").stat().st_size < 6_000_000
    assert not list(output.glob("models/*/.cases/*.partial/*"))
    assert not list(output.rglob("*.reading"))
