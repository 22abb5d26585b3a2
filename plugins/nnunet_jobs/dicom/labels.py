"""Makes a label volume from DICOM SEG and RTSTRUCT objects: matches segments to labels by name and paints them on the image's grid."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.steps.label_rules import LabelRules
from nnunet_jobs.dicom.header import LABEL_CLASSES
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.rtstruct import read_rtstruct
from nnunet_jobs.dicom.seg_reader import read_seg
from nnunet_jobs.dicom.segments import LabelFaults, Segment
from nnunet_jobs.faults.codes import Code, data_error

log = logging.getLogger("nnunet_jobs")

Described = tuple[Series, Series, Grid]
"""A label object, the image series that it describes, and the voxel grid of that series."""
_READERS = {"SEG": read_seg, "RTSTRUCT": read_rtstruct}


def label_volume(
    objects: Sequence[Series],
    reference: Series,
    grid: Grid,
    rules: Mapping[str, Any] | None,
    label_names: Mapping[str, int],
    *,
    others: Sequence[Described] = (),
    on_warning: Callable[[Fault], None] | None = None,
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Paint the segments of SEG and RTSTRUCT objects into one label volume.

    Args:
        objects: Series of modality SEG or RTSTRUCT that describe ``reference``.
        grid: Voxel grid of the reference.
        rules: Field ``label_rules``, see :class:`~nnunet_jobs.contract.steps.label_rules.LabelRules`.
        label_names: Label name to value; ``background`` is 0.
        others: Objects that describe other channels of the case, each with its channel, on the same grid as the
            reference.
        on_warning: Called with each warning; warnings are logged if None.

    Returns:
        Label values in the grid's (i, j, k) order, uint8, or uint16 for values above 255.

    Raises:
        ConfigError: A rule or a label is malformed.
        DataError: There are errors; all faults of all objects are listed, without case, file or UID.
    """
    parsed = _checked(rules, label_names)
    report = LabelFaults()
    described = [*((item, reference, grid) for item in objects), *others]
    if not described:
        report.error(Code.LABEL_MISSING, "no SEG or RTSTRUCT object describes this series; export it, or leave the series out")
    by_label = _assign(_segments(described, parsed, report), parsed, label_names, report)
    volume = _painted(by_label, grid, parsed, label_names, report)
    if described and not by_label and not report.faults:
        report.warning(Code.LABEL_EMPTY, "no segment becomes a label; every one is skipped by label_rules")
    errors = [fault for fault in report.faults if fault.severity == "error"]
    for fault in report.faults:
        if fault.severity != "error":
            (on_warning or _log_warning)(fault)
    if errors:
        raise data_error(errors, what="label not read")
    return volume


def _checked(rules: Mapping[str, Any] | None, label_names: Mapping[str, int]) -> LabelRules:
    for name, value in label_names.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
            raise ConfigError(
                field="label_names",
                problem=f"{name!r}={value!r}: labels from DICOM need one value each",
                fix="regions are made of single labels",
            )
    try:
        parsed = LabelRules.parse(rules)
        parsed.check_labels(label_names)
    except ValueError as error:
        raise ConfigError(field="label_rules", problem=str(error)) from None
    return parsed


def _segments(described: Sequence[Described], rules: LabelRules, report: LabelFaults) -> list[Segment]:
    found: list[Segment] = []
    files = [(series, instance, reference, grid) for series, reference, grid in described for instance in series.instances]
    for number, (series, instance, reference, grid) in enumerate(files, start=1):
        source = f"{series.modality} {number} of {len(files)}"
        reader = _READERS.get(series.modality)
        if reader is None or instance.sop_class not in LABEL_CLASSES:
            report.error(Code.LABEL_OBJECT, f"{source}: is of a kind (SOP class) that is not read; give SEG or RTSTRUCT")
            continue
        with _broken(f"{source}: is not readable", report):
            found += reader(instance.path, reference=reference, grid=grid, source=source, threshold=rules.threshold, report=report)
    return found


def _assign(
    segments: Sequence[Segment], rules: LabelRules, label_names: Mapping[str, int], report: LabelFaults
) -> dict[str, list[Segment]]:
    """Return the segments by label, in the order in which labels are painted."""
    by_label: dict[str, list[Segment]] = {}
    seen: dict[str, Segment] = {}
    for segment in segments:
        labels = rules.labels_of(segment.name, label_names)
        if not labels:
            report.error(
                Code.SEGMENT_UNKNOWN,
                f"{segment}: matches no label; name it in label_rules, such as {{{next(iter(label_names))!r}: [...]}}, or in 'skip'",
            )
        elif len(labels) > 1:
            report.error(Code.SEGMENT_AMBIGUOUS, f"{segment}: matches the labels {', '.join(map(str, labels))}; make the rules narrower")
        elif labels[0] is not None and label_names[labels[0]] != 0:
            folded = segment.name.strip().casefold()
            other = seen.setdefault(folded, segment)
            if other is not segment and other.source != segment.source:
                fix = "keep the one that counts, or rename one of them"
                report.error(Code.SEGMENT_TWICE, f"{segment}: {other.source} has a segment of this name too; {fix}")
            by_label.setdefault(labels[0], []).append(segment)
    rank = {name: place for place, name in enumerate(rules.priority)}
    return {name: by_label[name] for name in sorted(by_label, key=lambda name: (rank.get(name, len(rank)), label_names[name]))}


def _painted(
    by_label: Mapping[str, Sequence[Segment]], grid: Grid, rules: LabelRules, label_names: Mapping[str, int], report: LabelFaults
) -> npt.NDArray[np.unsignedinteger[Any]]:
    wide = max(label_names.values(), default=0) > 255
    volume: npt.NDArray[np.unsignedinteger[Any]] = np.zeros(grid.shape, dtype=np.uint16 if wide else np.uint8, order="F")
    owners = {label_names[name]: name for name in by_label}
    mask = np.zeros(grid.shape, dtype=np.bool_, order="F")  # slice by slice, as it is painted
    stored, marked = volume.T, mask.T  # in memory order, which makes boolean indexing fast
    for name, segments in by_label.items():
        mask[...] = False
        for segment in segments:
            with _broken(f"{segment}: cannot be read", report):
                segment.paint(mask, report)
        for value, voxels in zip(*(found.tolist() for found in np.unique(stored[marked], return_counts=True)), strict=True):
            if value and not {name, owners[value]} <= set(rules.priority):
                message = f"labels {owners[value]!r} and {name!r} overlap in {voxels} voxels; say in label_rules' 'priority' which one wins"
                report.error(Code.LABEL_OVERLAP, message)
        stored[marked & (stored == 0)] = label_names[name]
    return volume


@contextlib.contextmanager
def _broken(what: str, report: LabelFaults) -> Iterator[None]:
    """Turn any error of a library into a fault of the damaged file, without the library's message, which may quote the file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception:
        report.error(Code.UNREADABLE, f"{what}, it may be cut off or damaged; export it again")


def _log_warning(fault: Fault) -> None:
    log.warning("%s", fault)
