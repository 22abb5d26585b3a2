"""Preprocessing under fire: several at once, killed, stopped, out of space; readers never notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devtools.testbed.preprocessing import DATASET, context, preprocess, register, result_of, start
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import FailureClass, Interrupted
from nnunet_jobs.contract.steps.params import PreprocessParams
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing.version import JOURNAL

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
CASES = [f"phantom_{number:03d}" for number in range(40)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "source"
    write_phantom(folder, cases=len(CASES), seed=6)
    return folder


def wait_until(holds: Callable[[], bool], *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def versions(workspace: Workspace) -> list[Path]:
    return sorted((Path(workspace.preprocessed) / ".versions").iterdir())


def journal_lines(workspace: Workspace) -> int:
    return sum(
        len(path.read_bytes().splitlines()) for path in (Path(workspace.preprocessed) / ".versions").glob(f".staging-*/{JOURNAL}")
    )  # fmt: skip


def test_fault_34_five_at_once_agree_on_one_version_and_one_splits_file(workspace: Workspace, source: Path) -> None:
    """Also fault 32: two DAG runs for one dataset at once."""
    register(workspace, source, CASES[:6])
    processes = [start(workspace, name=f"job_{number}", configurations=["2d"]) for number in range(5)]
    results = [result_of(process)["datasets"][0] for process in processes]
    assert len({result["version"] for result in results}) == 1
    assert sorted(result["already_done"] for result in results) == [False, True, True, True, True]
    assert [path.name for path in versions(workspace)] == [results[0]["version"]]
    assert len(json.loads((Path(results[0]["path"]) / "splits_final.json").read_text())) == 5


def test_fault_33_a_training_that_reads_is_not_disturbed_by_a_new_version(workspace: Workspace, source: Path) -> None:
    import blosc2

    register(workspace, source, CASES[:6])
    first = Path(preprocess(workspace, configurations=["2d"])["datasets"][0]["path"])
    hashes = {path: sha256_file(path) for path in first.rglob("*") if path.is_file()}
    folder = first / "nnUNetPlans_2d"
    expected = {case: blosc2.open(urlpath=str(folder / f"{case}.b2nd"), mode="r", mmap_mode="r")[...].sum() for case in CASES[:6]}
    stop, reads, wrong = threading.Event(), [0], []

    def train() -> None:
        while not stop.is_set():
            for case, total in expected.items():
                if blosc2.open(urlpath=str(folder / f"{case}.b2nd"), mode="r", mmap_mode="r")[...].sum() != total:
                    wrong.append(case)
                reads[0] += 1

    reader = threading.Thread(target=train)
    reader.start()
    try:
        register(workspace, source, CASES[:8])
        second = Path(preprocess(workspace, name="second", configurations=["2d", "3d_fullres"])["datasets"][0]["path"])
    finally:
        stop.set()
        reader.join()
    assert reads[0] > 6
    assert wrong == []
    assert {path: sha256_file(path) for path in first.rglob("*") if path.is_file()} == hashes
    assert (Path(workspace.preprocessed) / DATASET).resolve() == second != first


def test_a_killed_run_leaves_nothing_visible_and_the_next_takes_over_its_cases(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    register(workspace, source, CASES)
    process = start(workspace, configurations=["2d", "3d_fullres"])
    try:
        wait_until(lambda: journal_lines(workspace) >= 5 or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert workspace.current_version(DATASET) is None
    assert all(path.name.startswith(".staging-") for path in versions(workspace))
    finished = journal_lines(workspace)
    result = preprocess(workspace, configurations=["2d", "3d_fullres"])["datasets"][0]
    assert result["linked"] >= finished - 1 >= 4, "the last line of the journal may have been cut"
    assert result["linked"] + result["computed"] == 80
    assert [path.name for path in versions(workspace)] == [result["version"]]
    undisturbed = Workspace.below(tmp_path / "other", raw=workspace.raw)
    assert preprocess(undisturbed, configurations=["2d", "3d_fullres"])["version"] == result["version"]


def test_a_stopped_run_keeps_its_finished_cases(workspace: Workspace, source: Path) -> None:
    from nnunet_jobs.steps.preprocess import run

    register(workspace, source, CASES)
    here = context(workspace)
    finished = threading.Event()

    def stop() -> None:
        wait_until(lambda: journal_lines(workspace) >= 3 or finished.is_set())
        here.stop.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        with pytest.raises(Interrupted):
            run(PreprocessParams(datasets=[DATASET], configurations=["2d", "3d_fullres"]), here)
    finally:
        finished.set()
        stopper.join()
    assert workspace.current_version(DATASET) is None
    result = preprocess(workspace, configurations=["2d", "3d_fullres"])["datasets"][0]
    assert 3 <= result["linked"] < 80


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_said_plainly_and_no_half_version_is_visible(workspace: Workspace, source: Path, small_disk: Path) -> None:
    small = Workspace.below(small_disk, raw=workspace.raw, jobs=workspace.jobs)
    register(workspace, source, CASES)
    with pytest.raises(Exception) as caught:
        preprocess(small, configurations=["2d", "3d_fullres"])
    assert classify(caught.value) is FailureClass.DISK_FULL
    assert small.current_version(DATASET) is None
    assert versions(small) == []
    register(workspace, source, CASES[:5])
    assert preprocess(small, configurations=["2d"])["datasets"][0]["computed"] == 5
