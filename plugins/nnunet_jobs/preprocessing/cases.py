"""Preprocesses cases by nnU-Net's own preprocessor, with threads limited by cores and memory, and reads each image once.

It uses threads instead of processes: nnU-Net and torch are imported once, images are shared between fingerprint and
configurations, and a worker cannot be killed without the job. NumPy, SciPy and blosc2 release the interpreter lock in long loops.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nnunet_jobs.contract.failure import DataError, DiskFull, Fault, JobError
from nnunet_jobs.contract.storage.files import content_hash, sha256_file
from nnunet_jobs.dataset.readers.verdict import errors_of
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.faults.codes import Code, data_error
from nnunet_jobs.preprocessing.version import CASE_SUFFIXES, FileRecord, record_file

# Peak bytes a voxel and channel while a case is resampled: float32 image, its float64 copy and result, float32 result, and
# one float64 mask a label at a time.
BYTES_PER_VOXEL = 40
# Share of the memory for decoded images that wait for their second use.
READ_CACHE_SHARE = 0.25
_FULL_BELOW = 1 << 20  # bytes; blosc2 reports a full disk without an error number, so the free space is checked

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCase:
    """One registered training case.

    Attributes:
        name: Case id.
        images: One file for each channel.
        label: Label file.
        hashes: SHA-256 of the images and, last, of the label.
        group: Patient of the case.
        shape: Shape in voxels.
        spacing: Spacing in mm, same axis order as shape.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    hashes: tuple[str, ...]
    group: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    def key(self, *context: Any) -> str:
        """Return a content key: a hash of the files and everything else that the result depends on."""
        return content_hash([list(self.hashes), *context], length=32)

    def check(self) -> None:
        """Raise DataError unless the files are unchanged since the registration."""
        for path, digest in zip((*self.images, self.label), self.hashes, strict=True):
            try:
                unchanged = sha256_file(path) == digest
            except FileNotFoundError:
                unchanged = False
            if not unchanged:
                message = "changed or missing since it was registered; run RegisterDatasetOperator again"
                raise DataError(f"{path.name}: {message}", faults=[Fault(code="changed", message=message, case=self.name, file=path.name)])

    def working_bytes(self, target_spacing: Iterable[float] | None) -> int:
        """Estimate the peak memory of preprocessing this case to a target spacing in mm (any axis order; None: unchanged)."""
        voxels = math.prod(self.shape)
        grown = voxels
        if target_spacing is not None:
            here = sorted(self.spacing)[: len(target := sorted(target_spacing))]  # 2d resamples in the plane of the finer axes
            grown = math.ceil(voxels * math.prod(here) / max(math.prod(target), 1e-9))
        return BYTES_PER_VOXEL * (len(self.images) + 1) * max(voxels, grown)


def training_cases(raw: Path, manifest: Mapping[str, Any]) -> list[TrainingCase]:
    """Return the manifest's training cases, sorted as nnU-Net sorts them.

    Raises:
        DataError: There is none, or one has no label.
    """
    ending = manifest["file_ending"]
    cases = []
    for name, entry in sorted(manifest["cases"].items()):
        if entry["split"] != "train":
            continue
        if not entry["label"]:
            raise DataError(f"case {name} is registered for training without a label; run RegisterDatasetOperator again")
        cases.append(
            TrainingCase(
                name=name,
                images=tuple(raw / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(len(entry["images"]))),
                label=raw / "labelsTr" / f"{name}{ending}",
                hashes=(*entry["images"], entry["label"]),
                group=str(entry.get("group") or name),
                shape=tuple(entry["shape"]),
                spacing=tuple(entry["spacing"]),
            )
        )
    if not cases:
        raise DataError(f"{manifest['dataset']}: no training cases are registered")
    return cases


class ReadCache:
    """Keeps decoded images between their first and last use, within a memory budget. Thread-safe."""

    def __init__(self, reader: Callable[[], Any], budget: int) -> None:
        self.reader = reader
        self._budget = budget
        self._held: dict[str, tuple[Any, Any, dict[str, Any]]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, case: TrainingCase, *, keep: bool) -> tuple[Any, Any, dict[str, Any]]:
        """Return images, label and the reader's properties, checked against the manifest; keep them if there is room."""
        with self._lock:
            held = self._held.get(case.name)
        if held is not None:
            return held
        case.check()
        reader = self.reader()
        try:
            images, properties = reader.read_images([str(path) for path in case.images])
            label, _ = reader.read_seg(str(case.label))
        except (RuntimeError, ValueError, OSError) as error:
            if "alloc" in str(error).lower():  # how ITK says that memory ran out; not a fault of the case
                raise
            raise _refused(case, type(reader).__name__, error) from error
        held = (images, label, properties)
        size = images.nbytes + label.nbytes
        with self._lock:
            if keep and case.name not in self._held and self._bytes + size <= self._budget:
                self._held[case.name] = held
                self._bytes += size
        return held

    def forget(self, case: TrainingCase) -> None:
        """Release a case that is not needed again."""
        with self._lock:
            held = self._held.pop(case.name, None)
            if held is not None:
                self._bytes -= held[0].nbytes + held[1].nbytes


def _refused(case: TrainingCase, reader: str, error: Exception) -> DataError:
    """Explain a reader's error as registration would, since nnU-Net's readers raise errors without a message."""
    faults = errors_of(case.images, case.label, case=case.name, reader=reader)
    if not faults:
        message = f"nnU-Net's reader {reader} refuses it ({library_says(error)}); write its files again and register again"
        faults = [Fault(code=str(Code.READER_REFUSES), message=message, case=case.name)]
    return data_error(faults, what=f"{case.name} cannot be read")


class _HeldReader:
    """nnU-Net's reader interface for a case in memory. It returns copies, since a preprocessor may write into them."""

    def __init__(self, images: Any, label: Any, properties: dict[str, Any]) -> None:
        self._images, self._label, self._properties = images, label, properties

    def read_images(self, _files: Any) -> tuple[Any, dict[str, Any]]:
        return self._images.copy(), copy.deepcopy(self._properties)

    def read_seg(self, _file: Any) -> tuple[Any, dict[str, Any]]:
        return self._label.copy(), copy.deepcopy(self._properties)


class _PlansOfOneCase:
    """nnU-Net's PlansManager with a reader that returns the case in memory."""

    def __init__(self, plans_manager: Any, reader: _HeldReader) -> None:
        self._plans_manager = plans_manager
        self.image_reader_writer_class = lambda: reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plans_manager, name)


def preprocess_case(
    case: TrainingCase,
    held: tuple[Any, Any, dict[str, Any]],
    *,
    plans_manager: Any,
    configuration_manager: Any,
    dataset_json: Any,
    folder: Path,
) -> dict[str, FileRecord]:
    """Run nnU-Net's preprocessor for one case and configuration into ``folder`` and check that the result opens.

    Returns:
        File name to record of the three files.

    Raises:
        DiskFull: There are no free bytes or inodes, whatever the library's error is.
    """
    target = folder / case.name
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    one_case = _PlansOfOneCase(plans_manager, _HeldReader(*held))
    try:
        preprocessor.run_case_save(
            str(target), [str(path) for path in case.images], str(case.label), one_case, configuration_manager, dataset_json
        )
        _check_arrays(target)
        return {f"{case.name}{suffix}": record_file(folder / f"{case.name}{suffix}") for suffix in CASE_SUFFIXES}
    except Exception as error:
        raise_if_full(folder, error)
        raise


def _check_arrays(target: Path) -> None:
    """Decompress both arrays, so that an incomplete write is found here and not in a later training."""
    import blosc2

    shapes = []
    for suffix in CASE_SUFFIXES[:2]:
        stored = blosc2.open(urlpath=f"{target}{suffix}", mode="r", dparams={"nthreads": 1})
        shapes.append(stored[...].shape[1:])
    if shapes[0] != shapes[1]:
        raise OSError(f"{target.name}: image {shapes[0]} and label {shapes[1]} differ after writing")


def raise_if_full(folder: Path, error: BaseException) -> None:
    """Raise DiskFull instead of ``error`` if no space or no inodes are left."""
    if isinstance(error, JobError) or not folder.exists():
        return
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < _FULL_BELOW or (status.f_files and not status.f_favail):
        raise DiskFull(f"{folder}: no space or no inodes left; free some or move the workspace ({error})") from error


class MemoryGate:
    """Admits as much work as fits the budget; a piece larger than the budget runs alone."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes of the budget."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self._budget)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def available_memory(limit_mib: int | None) -> int:
    """Return the bytes to work with: the job's limit, or four fifths of the host's free memory."""
    if limit_mib is not None:
        return limit_mib << 20
    with open("/proc/meminfo", encoding="ascii") as lines:
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line and line.split()[1].isdigit()}
    return int(values["MemAvailable"] * 1024 * 0.8)


def run_all(pool: ThreadPoolExecutor, work: Iterable[Callable[[], T]], *, between: Callable[[], None]) -> Iterator[T]:
    """Yield results as they are ready. A failure, or an exception of ``between``, cancels what has not begun and waits for the rest.

    Args:
        pool: Pool of threads.
        work: Pieces of work.
        between: Called at least every half second; raises to stop.
    """
    pending: set[Future[T]] = {pool.submit(piece) for piece in work}
    try:
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            between()
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
