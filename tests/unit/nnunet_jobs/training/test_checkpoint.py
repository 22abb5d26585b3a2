"""Checkpoints: what is refused, what is fallen back to, what a failed save leaves."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, DataError, DiskFull, FailureClass
from nnunet_jobs.prediction import network
from nnunet_jobs.training import checkpoint, pretrained
from nnunet_jobs.training.checkpoint import BEST, FINAL, LATEST, PREVIOUS, UnreadableCheckpoint, UnsafeCheckpoint

IDENTITY = {"model": "m", "configuration": "2d", "fold": 0}


def write(path: Path, epoch: int, *, identity: dict[str, Any] | None = None, size: int = 1000, iteration: int = 0) -> Path:
    import torch

    record = {**(IDENTITY if identity is None else identity), "iteration": iteration, "losses": [0.5] * iteration}
    data = {
        "network_weights": {"w": torch.arange(size, dtype=torch.float32)},
        "current_epoch": epoch,
        "init_args": {checkpoint.IDENTITY: record},
    }
    checkpoint.save(path, lambda temporary: torch.save(data, temporary))
    return path


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def flip_bit_in_tensor(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + 200] ^= 1
    path.write_bytes(data)


def found(folder: Path) -> tuple[str, int] | None:
    newest = checkpoint.newest_verified(folder, IDENTITY)
    return (newest.path.name, newest.epoch) if newest else None


def test_the_newest_epoch_is_found_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        write(tmp_path / LATEST, epoch)
    write(tmp_path / BEST, 1)
    assert found(tmp_path) == (LATEST, 3)
    (tmp_path / LATEST).unlink()
    assert found(tmp_path) == (PREVIOUS, 2)


def test_an_iteration_counts_within_its_epoch(tmp_path: Path) -> None:
    write(tmp_path / BEST, 2)
    write(tmp_path / LATEST, 2, iteration=7)
    newest = checkpoint.newest_verified(tmp_path, IDENTITY)
    assert newest is not None
    assert (newest.path.name, newest.epoch, newest.iteration) == (LATEST, 2, 7)


def test_the_final_checkpoint_wins_and_none_means_a_fresh_start(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    write(tmp_path / LATEST, 9)
    write(tmp_path / FINAL, 5)
    assert found(tmp_path) == (FINAL, 5)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_fault_29_a_cut_checkpoint_falls_back(tmp_path: Path, share: float) -> None:
    write(tmp_path / LATEST, 1)
    write(tmp_path / LATEST, 2)
    cut(tmp_path / LATEST, share)
    with pytest.raises(UnsafeCheckpoint, match="not a complete torch archive"):
        checkpoint.load(tmp_path / LATEST)
    assert found(tmp_path) == (PREVIOUS, 1)


def test_fault_29_an_empty_checkpoint_falls_back(tmp_path: Path) -> None:
    write(tmp_path / BEST, 1)
    (tmp_path / LATEST).touch()
    assert found(tmp_path) == (BEST, 1)


def test_fault_30_a_flipped_bit_is_seen_and_falls_back(tmp_path: Path) -> None:
    write(tmp_path / LATEST, 1)
    write(tmp_path / LATEST, 2)
    flip_bit_in_tensor(tmp_path / LATEST)
    with pytest.raises(UnsafeCheckpoint, match="damaged"):
        checkpoint.load(tmp_path / LATEST)
    assert found(tmp_path) == (PREVIOUS, 1)


def _fuzzed(folder: Path, bits: Callable[[int], Iterable[int]]) -> Counter[str]:
    """Flip bits of every byte of the newest checkpoint, one at a time: it is refused for the older one, or loads as it was."""
    import torch

    for epoch in (1, 2):
        write(folder / LATEST, epoch, size=40)
    whole = (folder / LATEST).read_bytes()
    outcomes: Counter[str] = Counter()
    for place in range(len(whole)):
        for bit in bits(place):
            (folder / LATEST).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            newest = checkpoint.newest_verified(folder, IDENTITY)
            assert newest is not None
            outcomes[newest.path.name] += 1
            if newest.path.name == LATEST:
                assert newest.epoch == 2, (place, bit)
                assert torch.equal(newest.data["network_weights"]["w"], torch.arange(40, dtype=torch.float32)), (place, bit)
                continue
            assert newest.epoch == 1
            with pytest.raises(ConfigError, match="pretrained="):
                pretrained.load_into(None, pretrained.Pretrained(path=folder / LATEST, identity=""))
            with pytest.raises(DataError, match="train the fold again"):
                network._load(folder / LATEST)
    return outcomes


@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile and torch warn of some headers
def test_fault_65_a_flipped_bit_of_any_byte_falls_back_or_changes_nothing(tmp_path: Path) -> None:
    """A bit of each byte, headers and the archive's directory too; the nightly test flips all eight."""
    outcomes = _fuzzed(tmp_path, lambda place: [place % 8])
    assert outcomes[PREVIOUS] > 3 * outcomes[LATEST] / 2 > 0, outcomes


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fault_65_each_bit_of_every_byte(tmp_path: Path) -> None:
    _fuzzed(tmp_path, lambda _place: range(8))


def test_where_memory_is_short_a_whole_checkpoint_is_not_taken_for_none(tmp_path: Path) -> None:
    """A training that began anew would throw away what is whole; the older checkpoint is taken where it can be read."""
    import torch

    write(tmp_path / LATEST, 1)
    write(tmp_path / LATEST, 2, size=2_000_000)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    torch.empty(1)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 20), before[1]))
        older = found(tmp_path)
        (tmp_path / PREVIOUS).unlink()
        with pytest.raises(UnreadableCheckpoint) as caught:
            found(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert older == (PREVIOUS, 1)
    assert classify(caught.value) is FailureClass.HOST_OOM
    assert found(tmp_path) == (LATEST, 2)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["top", "init_args"])
def test_fault_31_a_pickle_payload_is_refused_and_not_executed(tmp_path: Path, place: str) -> None:
    import torch

    write(tmp_path / BEST, 1)
    payload = Payload(tmp_path / "executed")
    data: dict[str, Any] = {"network_weights": {}, "current_epoch": 3, "init_args": {checkpoint.IDENTITY: dict(IDENTITY)}}
    data |= {"payload": payload} if place == "top" else {"init_args": {**data["init_args"], "x": payload}}
    torch.save(data, tmp_path / LATEST)
    with pytest.raises(UnsafeCheckpoint, match="more than tensors"):
        checkpoint.load(tmp_path / LATEST)
    assert found(tmp_path) == (BEST, 1)
    with checkpoint.only_safe_loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / LATEST, weights_only=False)  # as nnU-Net does
    assert not (tmp_path / "executed").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") is None


def test_fault_31_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / LATEST).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert found(tmp_path) is None
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("change", [{"model": "other"}, {"fold": 1}, {"fold": "all"}, {"configuration": "3d"}])
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / FINAL, 7, identity={**IDENTITY, **change})
    write(tmp_path / LATEST, 2)
    assert found(tmp_path) == (LATEST, 2)


def test_a_stock_checkpoint_without_identity_is_refused(tmp_path: Path) -> None:
    write(tmp_path / FINAL, 7, identity={})
    assert found(tmp_path) is None


def test_fault_08_a_save_killed_between_its_two_renames_leaves_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / LATEST, 4)
    os.replace(tmp_path / LATEST, tmp_path / PREVIOUS)
    leftover = tmp_path / f".{LATEST}.1.ab.tmp"
    leftover.write_bytes(b"half")
    assert found(tmp_path) == (PREVIOUS, 4)
    assert not leftover.exists()


def test_a_save_that_does_not_read_back_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / LATEST, 1)
    before = (tmp_path / LATEST).read_bytes()
    with pytest.raises(UnsafeCheckpoint):
        checkpoint.save(tmp_path / LATEST, lambda temporary: temporary.write_bytes(b"nonsense") and None)
    assert (tmp_path / LATEST).read_bytes() == before
    assert os.listdir(tmp_path) == [LATEST]


def test_one_file_under_two_names_survives_the_loss_of_either(tmp_path: Path) -> None:
    write(tmp_path / LATEST, 1)
    write(tmp_path / BEST, 2)
    assert checkpoint.link(tmp_path / BEST, tmp_path / LATEST)
    assert found(tmp_path) == (LATEST, 2)
    write(tmp_path / BEST, 3)
    assert checkpoint.load(tmp_path / LATEST)["current_epoch"] == 2
    assert checkpoint.load(tmp_path / PREVIOUS)["current_epoch"] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=8", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_fault_15_a_full_disk_is_named_and_the_old_checkpoint_stays(small_disk: Path) -> None:
    write(small_disk / LATEST, 1)
    before = (small_disk / LATEST).read_bytes()
    with pytest.raises(DiskFull, match="no space left"):
        write(small_disk / LATEST, 2, size=100_000)
    assert os.listdir(small_disk) == [LATEST]
    assert (small_disk / LATEST).read_bytes() == before
    write(small_disk / LATEST, 2)
    assert found(small_disk) == (LATEST, 2)


def test_fault_17_no_inodes_are_named_like_a_full_disk(small_disk: Path) -> None:
    write(small_disk / LATEST, 1)
    for number in range(8):
        try:
            (small_disk / f"file{number}").touch()
        except OSError:
            break
    with pytest.raises(DiskFull):
        write(small_disk / LATEST, 2)
    assert found(small_disk) == (LATEST, 1)
