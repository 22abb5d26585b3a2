"""Writes checkpoints beside their place, syncs, verifies and renames them, and reads them without executing anything.

    checkpoint_latest.pth     newest epoch (stock name)
    checkpoint_previous.pth   the one before it; stock tools ignore this name
    checkpoint_best.pth       best smoothed Dice (stock name)
    checkpoint_final.pth      the trained model (stock name)

A bit flip in tensor data loads silently, so the CRC of every record of the file is checked too. A checkpoint from another
model, configuration or fold is never used for this one, since each contains the identity of its training.
"""

from __future__ import annotations

import errno
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import DiskFull, FailureClass
from nnunet_jobs.contract.storage.files import sync_directory, sync_file, temporary_beside
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT

log = logging.getLogger("nnunet_jobs.training")

LATEST, PREVIOUS, BEST = (f"checkpoint_{name}.pth" for name in ("latest", "previous", "best"))
FINAL = FINAL_CHECKPOINT
# Key in the checkpoint's init_args, which stock tools keep but never read.
IDENTITY = "nnunet_jobs"
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch


class UnsafeCheckpoint(Exception):
    """A checkpoint that is damaged, or that holds more than tensors and plain values."""


class UnreadableCheckpoint(UnsafeCheckpoint):
    """A checkpoint that cannot be read now, because of the storage or too little memory; a later attempt may read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A verified checkpoint, and the epoch and iteration to continue from."""

    path: Path
    epoch: int
    iteration: int
    data: dict[str, Any]


def _safe_globals() -> list[Any]:
    """Return the NumPy types in nnU-Net's logging lists, which alone are allowed beside tensors and plain values."""
    from numpy._core.multiarray import scalar

    return [scalar, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]


def load(path: Path, *, device: Any = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint after checking every byte of it; nothing in it is executed.

    Args:
        path: Checkpoint file.
        device: Device to load tensors to.
        mapped: Whether tensors stay in the file until they are used.

    Raises:
        UnsafeCheckpoint: It is truncated, damaged, not a torch archive, or holds more than tensors and plain values.
        UnreadableCheckpoint: Every byte is correct, but this host cannot read it now (memory, storage).
        OSError: The file does not exist, or cannot be opened.
    """
    import pickle

    import torch

    with open(path, "rb") as file:
        _check_bytes(file, path.name)
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            data = torch.load(path, map_location=device, weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "unpickling refused"
        raise UnsafeCheckpoint(f"{path.name}: refused, it holds more than tensors and plain values ({reason})") from error
    except Exception as error:
        # The bytes of all records are right, so this is a header that zipfile tolerates and torch does not, or this host.
        kind = UnreadableCheckpoint if _of_this_host(error) else UnsafeCheckpoint
        raise kind(f"{path.name}: cannot be read ({_words(error)})") from error
    if not isinstance(data, dict) or not isinstance(data.get("network_weights"), dict):
        raise UnsafeCheckpoint(f"{path.name}: not an nnU-Net checkpoint (no network_weights)")
    return data


def _check_bytes(file: BinaryIO, name: str) -> None:
    """Compare the CRC of every record. A flipped bit of a header can make zipfile raise almost any error.

    Raises:
        UnsafeCheckpoint: It is truncated or damaged.
        UnreadableCheckpoint: The storage returns an error.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise UnsafeCheckpoint(f"{name}: not a complete torch archive ({error})") from error
    except Exception as error:  # zlib.error, struct.error, NotImplementedError, OSError of an impossible position, MemoryError, ...
        outage = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        kind = UnreadableCheckpoint if outage else UnsafeCheckpoint
        raise kind(f"{name}: {'cannot be read' if outage else 'its archive is damaged'} ({_words(error)})") from error
    if damaged is not None:
        raise UnsafeCheckpoint(f"{name}: record {damaged} is damaged (CRC)")


def _of_this_host(error: BaseException) -> bool:
    return isinstance(error, MemoryError | OSError) or classify(error) in (
        FailureClass.HOST_OOM,
        FailureClass.GPU_OOM,
        FailureClass.GPU_LOST,
    )


def _words(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message, if it has one."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def only_safe_loading() -> Iterator[None]:
    """Make every ``torch.load`` meanwhile refuse what :func:`load` refuses, even if nnU-Net passes ``weights_only=False``."""
    import torch

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def save(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a checkpoint beside ``path``, sync and verify it, and rename it onto ``path``.

    Raises:
        DiskFull: There are no free bytes or inodes; ``path`` is unchanged.
        UnsafeCheckpoint: The written file cannot be read back; ``path`` is unchanged.
    """
    temporary = temporary_beside(path)
    try:
        with _disk_errors(path):
            write(temporary)
            sync_file(temporary)
        load(temporary, mapped=True)
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def place(temporary: Path, path: Path) -> None:
    """Rename a verified file to its name, after the latest checkpoint has become the previous one."""
    if path.name == LATEST and path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    os.replace(temporary, path)
    sync_directory(path.parent)


def link(source: Path, path: Path) -> bool:
    """Give a verified checkpoint a second name instead of writing it twice. Returns False if there are no hard links."""
    temporary = temporary_beside(path)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            return False
        raise
    place(temporary, path)
    return True


def newest_verified(folder: Path, identity: Mapping[str, Any]) -> Found | None:
    """Return the furthest verified checkpoint of this identity, or the final one; None if training must start from epoch 0.

    Files of a killed save are removed. Every refused checkpoint is logged with the reason.

    Raises:
        UnreadableCheckpoint: None was verified, and one only because it could not be read. Training from the start would
            discard a checkpoint that may be intact.
        OSError: See UnreadableCheckpoint.
    """
    for leftover in folder.glob(".checkpoint_*.tmp"):
        leftover.unlink(missing_ok=True)
    best: Found | None = None
    unread: Exception | None = None
    seen: set[int] = set()
    for name in (FINAL, LATEST, PREVIOUS, BEST):
        path = folder / name
        if not path.is_file() or path.stat().st_ino in seen:
            continue
        seen.add(path.stat().st_ino)
        try:
            found = _verified(path, identity)
        except (UnsafeCheckpoint, OSError) as error:
            log.warning("checkpoint refused: %s", error)
            if isinstance(error, UnreadableCheckpoint | OSError) and not isinstance(error, FileNotFoundError):
                unread = unread or error
            continue
        if name == FINAL:
            return found
        if best is None or (found.epoch, found.iteration) > (best.epoch, best.iteration):
            best = found
    if best is None and unread is not None:
        raise unread
    return best


def _verified(path: Path, identity: Mapping[str, Any]) -> Found:
    data = load(path, mapped=True)
    record = data.get("init_args")
    written_under = record.get(IDENTITY, {}) if isinstance(record, dict) else {}
    if {key: written_under.get(key) for key in identity} != dict(identity):
        raise UnsafeCheckpoint(f"{path.name} belongs to {written_under or 'a training that was not ours'}")
    try:
        return Found(path=path, epoch=int(data["current_epoch"]), iteration=int(written_under.get("iteration", 0)), data=data)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsafeCheckpoint(f"{path.name}: not an nnU-Net checkpoint ({_words(error)})") from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raise DiskFull if the disk is full, which torch reports as a RuntimeError about stream positions."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        disk = os.statvfs(path.parent)
        full = not disk.f_bavail or (disk.f_files and not disk.f_favail)  # f_files is 0 if inodes are not counted
        if full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise DiskFull(f"no space left in {path.parent} for {path.name}; the checkpoint before it is kept. Free some space") from error
        raise
