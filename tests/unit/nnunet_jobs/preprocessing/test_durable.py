"""What a version or a dataset is published with has been synced before the rename that publishes it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.testbed.preprocessing import DATASET, preprocess, register
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset import transfer
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing.version import Staging

CASES = ["phantom_000", "phantom_001"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Inodes that the kernel was asked to write to the disk."""
    inodes: set[int] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        inodes.add(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    return inodes


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_every_file_and_folder_of_a_version_is_synced_before_it_is_published(
    workspace: Workspace, tmp_path: Path, synced: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(tmp_path / "source", cases=2, seed=5)
    register(workspace, tmp_path / "source", CASES)
    at_publication: list[set[int]] = []
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".staging-" in str(source):
            at_publication.append(set(synced))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    root = Path(preprocess(workspace, configurations=["2d"], folds=2)["datasets"][0]["path"])
    (known,) = at_publication
    assert [path for path in (root, *root.rglob("*")) if path.stat().st_ino not in known] == []
    assert list(root.rglob("*.b2nd"))


def test_a_reflinked_file_is_synced_before_it_gets_its_name(tmp_path: Path, synced: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with reflinks is rare: the kernel's answer is played, the bytes are copied."""

    def clone(writer: int, request: int, reader: int) -> int:
        assert request == transfer._FICLONE
        return os.sendfile(writer, reader, 0, os.fstat(reader).st_size)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"bytes")
    assert transfer.place(source, target, sha256=sha256_file(source), method="reflink", beat=lambda: None) == "reflink"
    assert target.stat().st_ino in synced


def test_the_folders_of_a_registration_are_synced_before_it_is_swapped_in(tmp_path: Path, synced: set[int]) -> None:
    staging, folder = tmp_path / "staging", tmp_path / DATASET
    for name in ("imagesTr", "labelsTr"):
        (staging / name).mkdir(parents=True)
    inodes = {path.stat().st_ino for path in (staging, *staging.iterdir())}
    transfer.swap_in(staging, folder)
    assert inodes <= synced


@pytest.mark.parametrize("where", ["version", "dataset"])
def test_a_file_that_is_copied_where_links_cannot_be_made_is_synced(
    workspace: Workspace, tmp_path: Path, synced: set[int], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "source").write_bytes(b"bytes")
    if where == "version":
        staging = Staging(workspace, DATASET)
        staging.link(tmp_path / "source", "target")
        target = staging.root / "target"
    else:
        target = tmp_path / "target"
        transfer.link_or_copy(tmp_path / "source", target)
    assert target.read_bytes() == b"bytes"
    assert target.stat().st_ino in synced
