"""Finds the series in a folder tree: reads headers in the sandbox, groups them by study and series, and names faulty files by number."""

from __future__ import annotations

import concurrent.futures
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.dicom.grouping import Headers, assign_by_folder, group, name_strangers
from nnunet_jobs.dicom.model import Scan
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox.workers import Broken, Workers, size_of

_HEADER_S, _HEADER_MIB = 60.0, 512  # in addition to what the file's size requires
_S_A_MIB, _MIB_A_MIB = 4.0, 24.0


def scan(
    root: Path,
    *,
    beat: Callable[[], None],
    workers: Workers | None = None,
    threads: int = 1,
    keywords: Sequence[str] = (),
    done: Callable[[int, int], None] | None = None,
) -> Scan:
    """Read the headers of every DICOM file below a folder and group them.

    Hidden files and folders are left out. Links are followed to files inside the tree; those that leave it are faults. Files are
    numbered from 1: a folder's files by name, then what is in its folders.

    Args:
        root: Resolved folder.
        beat: Called as a heartbeat; may raise to stop.
        workers: Workers to read with; starts its own if None.
        threads: Number of files that are read at the same time.
        keywords: DICOM keywords for ``Series.tags``.
        done: Called with the number of files read and of all files.
    """
    if workers is None:
        with dicom_workers(threads) as own:
            return scan(root, beat=beat, workers=own, threads=threads, keywords=keywords, done=done)
    found = Scan()
    files = list(enumerate(walk(root, found, beat), 1))
    guard = workers

    def read(item: tuple[int, Path]) -> dict[str, Any] | str:
        data = {"path": os.path.realpath(item[1]), "keywords": list(keywords)}
        mib = size_of([item[1]]) / (1 << 20)
        timeout_s, memory_mib = _HEADER_S + mib * _S_A_MIB, _HEADER_MIB + int(mib * _MIB_A_MIB)
        try:
            return guard.call("header", data, timeout_s=timeout_s, memory_mib=memory_mib, beat=beat)
        except Broken as broken:
            return str(broken)

    headers: Headers = []
    others: list[tuple[int, Path, str]] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        futures = [pool.submit(read, item) for item in files]
        try:
            for (number, path), future in zip(files, futures, strict=True):
                header = future.result()
                if done is not None:
                    done(number, len(files))
                if isinstance(header, str):
                    found.fault(Code.DICOM_UNREADABLE, number, path, f"cannot be read as DICOM: {header}; export it again or move it away")
                elif header["dicom"]:
                    headers.append((number, path, header))
                else:
                    others.append((number, path, header["kind"]))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    group(found, headers)
    name_strangers(found, others, headers)
    assign_by_folder(found, headers)
    return found


def walk(root: Path, found: Scan, beat: Callable[[], None]) -> Iterator[Path]:
    """Yield regular files, sorted; only yielded files are numbered, so faults of links have the number of the next file."""
    number = 0
    folders = [root]
    while folders:
        folder = folders.pop()
        beat()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.fault(Code.DICOM_UNREADABLE, number + 1, folder, f"the folder before it cannot be listed: {error.strerror}")
            continue
        below: list[Path] = []
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                target = Path(os.path.realpath(path))
                if not target.is_relative_to(root):
                    message = "the link before it leaves the source; copy what it points to into the source"
                    found.fault(Code.PATH_OUTSIDE, number + 1, path, message)
                    continue
                if not target.exists():
                    message = "the link before it is broken; copy what it should point to into the source, or remove it"
                    found.fault(Code.DICOM_UNREADABLE, number + 1, path, message)
                    continue
                if target.is_dir():
                    if any(part.startswith(".") for part in target.relative_to(root).parts):
                        message = "the link before it leads into a hidden folder, which is not read; give the folder a plain name"
                        found.fault(Code.DICOM_UNREADABLE, number + 1, path, message)
                    continue  # the walk reaches any other folder anyway
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif _is_regular(path):
                number += 1
                yield path
        folders += reversed(below)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # a broken link, or removed meanwhile
        return False
