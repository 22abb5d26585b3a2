"""What cases may do to a batch: kill the process that reads them, be half a file, or be under way when the job is killed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from nnunet_jobs import processes
from nnunet_jobs.contract.files import read_json
from nnunet_jobs.contract.workspace import Workspace
from support.batches import ABORT_CHECK, ABORT_ITK, ABORT_JOB, finish_job, poison, predict, reasons, start_job
from support.serving import PROJECT, make_image, make_workspace

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


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
    assert reasons(result) == {"b": f"reader_crashed: its reader died of signal {signal.SIGABRT.value}; write its files anew"}
    assert statuses(result) == {"a": "predicted", "b": "failed", "c": "predicted", "d": "predicted"}
    assert result["predicted"] == 3
    assert not [pid for pid in processes.descendants(os.getpid()) if b"prediction.reader" in Path(f"/proc/{pid}/cmdline").read_bytes()]


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
    shutil.copy(incoming / "a_0000.nii.gz", incoming / "b_0000.nii.gz")  # mended: tried like any other
    assert predict(home, incoming, tmp_path.name)["predicted"] == 1


def test_a_case_that_kills_two_attempts_is_given_up_after_all_others(home: Workspace, incoming: Path, tmp_path: Path) -> None:
    poison(incoming / "a_0000.nii.gz", ABORT_JOB)
    output = Path(home.output_roots[0]) / tmp_path.name
    for done in (set(), {"b", "c", "d"}):
        code, _ = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
        assert code == -signal.SIGABRT
        assert {path.name.removesuffix(".nii.gz") for path in output.glob("*.nii.gz")} >= done - {"d"}  # what was being written may be lost
    code, result = finish_job(start_job(home, incoming, tmp_path.name, hooks="itk_hooks"))
    assert code == 0
    assert "2 attempts ended" in reasons(result)["a"]
    assert statuses(result) == {"a": "failed", "b": "predicted", "c": "predicted", "d": "predicted"}
    assert not list((output / ".cases" / ".reading").glob("*"))
