"""Training under kills, cut and flipped checkpoints, hostile payloads, full disks, stops, hangs and diverging losses."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.liveness import read_counter
from nnunet_jobs.contract.storage.workspace import Workspace
from support.training import DATASET, Training, Warm, dead, grow, wait_for

pytestmark = pytest.mark.training

NAMES = ("checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")


def epochs_done(training: Training) -> int:
    """Epochs whose end the training has reported; their checkpoints were written before."""
    return max((record["done"] for record in training.metrics("train")), default=0)


def began_at(training: Training) -> int:
    """Epoch that an attempt went on with."""
    found = re.search(r"resuming from \S+: epoch (\d+)", training.job.log.read_text())
    return int(found[1]) if found else 0


def fold_of(workspace: Workspace) -> Path:
    """Folder of the only fold that is being trained."""
    found: Path = wait_for(lambda: next(Path(workspace.results).glob(f".versions/*/{DATASET}/*/fold_*"), None), what="the fold's folder")
    return found


def killed_after(warm: Warm, workspace: Workspace, reported: int, **params: Any) -> Path:
    """A fold whose training was SIGKILLed once so many epochs were reported."""
    training = warm.train(workspace, **params)
    wait_for(lambda: epochs_done(training) >= reported, what=f"{reported} epochs")
    training.kill(signal.SIGKILL)
    assert training.wait() == {"signal": signal.SIGKILL}
    return fold_of(workspace)


@pytest.mark.parametrize("number", [20, pytest.param(200, marks=(pytest.mark.nightly, pytest.mark.timeout(3600)))])
def test_fault_07_kills_at_random_moments_cost_at_most_an_epoch_each(warm: Warm, phantom: Workspace, number: int) -> None:
    dice = random.Random(7)
    settings = {"epochs": 3 * number, "iterations": 10}
    kills = reported = 0
    while kills < number:
        training = warm.train(phantom, **settings)
        beats = dice.randrange(1, 40)
        wait_for(lambda t=training, n=beats: read_counter(t.job.progress) >= n or dead(t.pid), what="some iterations")
        training.kill(signal.SIGKILL)
        assert training.wait() == {"signal": signal.SIGKILL}, training.job.log.read_text()[-3000:]
        kills += 1
        # The epoch after the last reported one may have been saved already, but not less than was reported.
        assert reported <= began_at(training) <= reported + 1
        reported = max(reported, began_at(training), epochs_done(training))
    result = warm.train(phantom, **settings).result()
    assert result["epochs"] == 3 * number
    assert reported <= result["resumed_from"] <= reported + 1
    assert warm.read(result["path"]) == warm.read(result["path"]) | {"epoch": 3 * number, "logged": [3 * number] * 8, "finite": True}
    assert not list(Path(result["path"]).glob(".*.tmp"))


@pytest.mark.parametrize("trainer", ["KilledInSave", "KilledHalfway"])
def test_fault_08_killed_inside_a_save_goes_on_from_the_one_before(warm: Warm, phantom: Workspace, trainer: str) -> None:
    first = warm.train(phantom, trainer=trainer, epochs=4)
    assert first.wait() == {"signal": signal.SIGKILL}
    assert list(fold_of(phantom).glob(".checkpoint_*.tmp"))
    result = warm.train(phantom, trainer=trainer, epochs=4).result()
    assert result["resumed_from"] == 2
    assert result["epochs"] == 4
    assert not list(fold_of(phantom).glob(".checkpoint_*.tmp"))


def test_fault_15_a_full_disk_keeps_the_checkpoint_before(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        small = Workspace.from_json({**phantom.to_json(), "results": str(disk)})
        started = warm.train(small, epochs=500)
        wait_for(lambda: epochs_done(started) >= 2, what="two epochs")
        fold = fold_of(small)
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(filler, b"x" * 4096)
        os.close(filler)
        failure = started.failure()
        assert failure.failure_class is FailureClass.DISK_FULL, failure
        assert not list(fold.glob(".*.tmp"))
        (disk / "filler").unlink()
        resumed = warm.train(small, epochs=500)
        wait_for(lambda: epochs_done(resumed) > epochs_done(started), what="an epoch more")
        assert began_at(resumed) >= epochs_done(started) >= 2
        resumed.kill(signal.SIGKILL)
        resumed.wait()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_fault_16_a_read_only_disk_is_refused_before_the_work_and_not_retried(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        training = warm.train(Workspace.from_json({**phantom.to_json(), "results": str(disk)}), epochs=500)
        failure = training.failure()
        assert failure.failure_class is FailureClass.CONFIG
        assert not failure.failure_class.retryable
        assert str(disk) in failure.message
        assert "mount it writable" in failure.message
        assert training.metrics() == []
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("iteration", [0, 5])
def test_fault_19_torchs_own_out_of_memory_error_in_a_step(warm: Warm, phantom: Workspace, iteration: int) -> None:
    """In the first iteration too, which tells what a class cannot do; the next try goes on where the last checkpoint is."""
    (Path(phantom.trainer_paths[0]) / "memory").write_text(str(iteration))
    first = warm.train(phantom, trainer="FullOnce", epochs=3)
    failure = first.failure()
    assert failure.failure_class is FailureClass.GPU_OOM
    assert failure.failure_class.retryable
    assert "OutOfMemoryError" in first.job.log.read_text()
    result = warm.train(phantom, trainer="FullOnce", epochs=3).result()
    assert (result["epochs"], result["resumed_from"]) == (3, None if iteration == 0 else 1)


def test_fault_28_a_stopped_trainer_gives_no_sign_of_life_until_it_goes_on(warm: Warm, phantom: Workspace) -> None:
    training = warm.train(phantom, epochs=500)
    wait_for(lambda: epochs_done(training) >= 1, what="an epoch")
    training.kill(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{training.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", what="the stop")
    silent = read_counter(training.job.progress)
    with pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: read_counter(training.job.progress) != silent, timeout_s=1)
    training.kill(signal.SIGCONT)
    wait_for(lambda: read_counter(training.job.progress) > silent, what="signs of life")
    training.kill(signal.SIGKILL)
    training.wait()


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip(path: Path, _: float) -> None:
    """One bit in the middle of the largest record of the archive."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[record.header_offset + 256 + record.file_size // 2] ^= 1
    path.write_bytes(data)


def flip_in_directory(path: Path, bit: float) -> None:
    """One bit of how the first record is packed, in the archive's directory; zipfile then takes plain bytes for packed ones."""
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    data[start + 10] ^= 1 << int(bit)
    path.write_bytes(data)


def flip_at_the_end(path: Path, _: float) -> None:
    """One bit of where the directory begins, in the archive's 64-bit end record: zipfile then seeks to an impossible position."""
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x06\x06") + 54] ^= 1 << 3
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "share"),
    [
        pytest.param(flip_in_directory, 3, id="fault_65_one_bit_of_a_header"),
        pytest.param(flip_at_the_end, 0, id="fault_65_one_bit_of_the_end"),
        pytest.param(cut, 0.5, id="fault_29_cut_to_half"),
        pytest.param(cut, 0.99, id="fault_29_cut_to_99_percent"),
        pytest.param(flip, 0, id="fault_30_one_bit"),
    ],
)
def test_fault_29_30_a_damaged_checkpoint_is_found_and_the_older_one_taken(warm: Warm, phantom: Workspace, harm: Any, share: float) -> None:
    fold = killed_after(warm, phantom, 3, epochs=500)
    saved = warm.read(fold, "checkpoint_latest.pth")["epoch"]
    assert warm.read(fold, "checkpoint_previous.pth")["epoch"] == saved - 1
    _alone(fold / "checkpoint_latest.pth")
    (fold / "checkpoint_best.pth").unlink()
    harm(fold / "checkpoint_latest.pth", share)
    resumed = warm.train(phantom, epochs=500)
    wait_for(lambda: epochs_done(resumed), what="an epoch")
    resumed.kill(signal.SIGKILL)
    resumed.wait()
    assert began_at(resumed) == saved - 1
    assert "checkpoint refused: checkpoint_latest.pth" in resumed.job.log.read_text()


def test_fault_29_without_any_verified_checkpoint_training_starts_again_and_says_so(warm: Warm, phantom: Workspace) -> None:
    fold = killed_after(warm, phantom, 2, epochs=500)
    for name in NAMES:
        cut(fold / name, 0.5)
    again = warm.train(phantom, epochs=500)
    wait_for(lambda: epochs_done(again), what="an epoch")
    again.kill(signal.SIGKILL)
    again.wait()
    assert "no verified checkpoint: starting from epoch 0" in again.job.log.read_text()


def test_fault_31_a_checkpoint_with_a_payload_is_refused_and_nothing_of_it_runs(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    fold = killed_after(warm, phantom, 2, epochs=500)
    saved = warm.read(fold, "checkpoint_latest.pth")["epoch"]
    _alone(fold / "checkpoint_latest.pth")
    marker = tmp_path / "executed"
    _poison(fold / "checkpoint_latest.pth", marker)
    resumed = warm.train(phantom, epochs=500)
    wait_for(lambda: epochs_done(resumed), what="an epoch")
    resumed.kill(signal.SIGKILL)
    resumed.wait()
    assert not marker.exists()
    assert "it holds more than tensors and plain values" in resumed.job.log.read_text()
    assert began_at(resumed) in (saved, saved - 1)


def test_fault_60_a_stop_during_a_slow_save_waits_for_it(warm: Warm, phantom: Workspace) -> None:
    slow = Path(phantom.results) / ".versions" / "slow"
    slow.parent.mkdir(parents=True)
    slow.write_text("3")
    training = warm.train(phantom, trainer="SlowSave", epochs=3)
    fold = fold_of(phantom)
    wait_for((fold / "saving.flag").exists, what="the save")
    training.kill(signal.SIGTERM)
    failure = training.failure()
    assert failure.failure_class is FailureClass.INTERRUPTED
    slow.write_text("0")
    result = warm.train(phantom, trainer="SlowSave", epochs=3).result()
    assert result["resumed_from"] == 1
    assert result["epochs"] == 3


def test_sigterm_saves_within_the_epoch_and_no_iteration_is_done_twice(warm: Warm, phantom: Workspace) -> None:
    settings = {"epochs": 2, "iterations": 60}
    training = warm.train(phantom, **settings)
    wait_for(lambda: read_counter(training.job.progress) >= 20, what="some iterations")
    training.kill(signal.SIGTERM)
    failure = training.failure()
    assert failure.failure_class is FailureClass.INTERRUPTED
    done = int(re.search(r"after iteration (\d+)", failure.message)[1])  # type: ignore[index]
    assert 0 < done < 60
    fold = fold_of(phantom)
    assert warm.read(fold, "checkpoint_latest.pth") == warm.read(fold, "checkpoint_latest.pth") | {"epoch": 0, "iteration": done}
    resumed = warm.train(phantom, **settings)
    result = resumed.result()
    assert result["resumed_from"] == 0
    assert f"epoch 0, iteration {done}" in resumed.job.log.read_text()
    assert warm.read(fold) == warm.read(fold) | {"epoch": 2, "logged": [2] * 8, "iteration": 0, "steps": 2 * 60}


def test_sigterm_during_the_validation_keeps_the_cases_that_are_predicted(warm: Warm, phantom: Workspace) -> None:
    training = warm.train(phantom, configuration="3d_low", epochs=1, iterations=1)
    wait_for(lambda: any(record["done"] >= 1 for record in training.metrics("validate")), what="a predicted case")
    training.kill(signal.SIGTERM)
    assert training.failure().failure_class is FailureClass.INTERRUPTED
    fold = fold_of(phantom)
    kept = {path.name: path.stat().st_mtime_ns for path in (fold / "validation").glob("*.nii.gz")}
    assert 1 <= len(kept) < 4
    assert warm.train(phantom, configuration="3d_low", epochs=1, iterations=1).result()["resumed_from"] == 1
    for name, written in kept.items():
        assert (fold / "validation" / name).stat().st_mtime_ns == written
    assert not list(fold.glob(".validation.*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_data_worker_outlives_its_trainer(warm: Warm, phantom: Workspace, number: int) -> None:
    training = warm.train(phantom, epochs=500, workers=2)
    wait_for(lambda: epochs_done(training) >= 1, what="an epoch")
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
    assert len(children) >= 2
    training.kill(number)
    training.wait()
    for child in children:
        wait_for(lambda pid=int(child): dead(pid), timeout_s=5, what="the end of a data worker")


def test_weights_that_became_nan_are_left_behind_once(warm: Warm, phantom: Workspace) -> None:
    training = warm.train(phantom, trainer="DivergesOnce", epochs=4)
    result = training.result()
    assert result["epochs"] == 4
    assert warm.read(result["path"]) == warm.read(result["path"]) | {"epoch": 4, "logged": [4] * 8, "finite": True}
    assert "training diverged" in training.job.log.read_text()


def test_a_training_that_keeps_diverging_fails_with_its_mend_and_a_good_checkpoint(warm: Warm, phantom: Workspace) -> None:
    training = warm.train(phantom, trainer="DivergesAlways", epochs=4, iterations=8)
    failure = training.failure()
    assert failure.failure_class is FailureClass.BUG
    assert "lower initial_lr" in failure.message
    kept = warm.read(fold_of(phantom), "checkpoint_latest.pth")
    assert kept == kept | {"epoch": 1, "finite": True}


def test_a_checkpoint_of_another_training_is_never_taken(warm: Warm, phantom: Workspace) -> None:
    other = warm.train(phantom, epochs=1).result()
    begun = killed_after(warm, phantom_only(phantom, other), 2, epochs=500)
    shutil.copy(Path(other["path"]) / "checkpoint_final.pth", begun / "checkpoint_final.pth")
    resumed = warm.train(phantom, epochs=500)
    wait_for(lambda: epochs_done(resumed), what="an epoch")
    resumed.kill(signal.SIGKILL)
    resumed.wait()
    assert began_at(resumed) >= 2
    assert "checkpoint_final.pth belongs to" in resumed.job.log.read_text()


def phantom_only(workspace: Workspace, result: dict[str, Any]) -> Workspace:
    """Move a finished model out of sight of :func:`fold_of`, keeping its path readable."""
    path = Path(result["path"])
    aside = Path(workspace.results).parent / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.move(str(path), aside)
    shutil.rmtree(workspace.model_root(result["model"]))
    result["path"] = str(aside)
    return workspace


def test_fault_33_a_new_version_disturbs_no_training_on_the_old_one(warm: Warm, phantom: Workspace, tmp_path: Path) -> None:
    """The dataset grows and is preprocessed while its old version is trained on: the training ends with the old cases."""
    roots = {name: str(tmp_path / name) for name in ("raw", "preprocessed", "results", "jobs")}
    for name in ("raw", "preprocessed"):
        shutil.copytree(phantom.to_json()[name], roots[name], symlinks=True)
    ours = Workspace.from_json({**phantom.to_json(), **roots, "input_roots": [str(tmp_path)]})
    old = ours.current_version(DATASET)
    assert old is not None
    files = [path for path in ours.preprocessed_root(old).rglob("*") if path.is_file()]
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in files}
    settings = {"epochs": 2000, "iterations": 2}
    training = warm.train(ours, **settings)
    wait_for(lambda: epochs_done(training) >= 1, what="an epoch")
    grow(ours, tmp_path / "source", cases=10)
    new = ours.current_version(DATASET)
    assert new not in (None, old)
    seen = epochs_done(training)
    wait_for(lambda: epochs_done(training) >= seen + 2 or dead(training.pid), what="epochs after the new version")
    training.kill(signal.SIGTERM)
    assert training.failure().failure_class is FailureClass.INTERRUPTED
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in files} == before
    assert warm.train(ours, epochs=1, iterations=1, version=old).result()["version"] == old
    assert warm.train(ours, epochs=1, iterations=1).result()["version"] == new


def _alone(path: Path) -> None:
    """Give a checkpoint its own bytes; latest and best may be one file."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def _poison(path: Path, marker: Path) -> None:
    """Put a pickle into the archive that would make ``marker`` if anything executed it."""
    payload = f"cbuiltins\nopen\n(S{json.dumps(str(marker))}\nS'w'\ntR.".encode()
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, payload if name.endswith("/data.pkl") else data)
