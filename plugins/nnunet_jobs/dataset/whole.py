"""Finds faults of a dataset as a whole, which appear only when all its cases are known."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.foreseen_plans import across_the_slice, nnunet_spacing, too_small
from nnunet_jobs.dataset.layouts.base import to_be_converted
from nnunet_jobs.dataset.names import NIFTI, split_ending
from nnunet_jobs.dataset.sources import Source
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.faults.codes import Code, shown
from nnunet_jobs.faults.fixes import FAULT_INFO

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """What the check of the whole needs of a case, whether it was read now or is registered already.

    Attributes:
        case: Id.
        file: Name of its first image.
        labelled: It has a label that could be read.
        shape: Voxels along x, y, z.
        values: Values of the label.
        spacing: mm along x, y, z.
        order: Order of the voxels, such as ``RAS``; empty where it is not known.
        planar: The image has two axes only.
    """

    case: str
    file: str | None
    labelled: bool
    shape: Sequence[int]
    values: Sequence[int]
    spacing: Sequence[float] = ()
    order: str = ""
    planar: bool = False


def check_endings(source: Source, ending: str) -> list[Fault]:
    """Return faults of files that cannot be registered with ``ending``; only NIfTI is recoded."""
    allowed = NIFTI if ending in NIFTI else (ending,)
    faults = []
    for case in source.cases.values():
        for path in (*case.images, *([case.label] if case.label else [])):
            own = split_ending(path.name)[1]
            if own and own not in allowed:
                message = f"ends in {own} where the dataset has {ending}; convert it"
                faults.append(_fault(Code.ENDING_MIXED, message, case=case.case, file=source.relative(path)))
    return faults


def check_unused(source: Source) -> list[Fault]:
    """Return faults of image files that no case uses, except those whose cases must be converted first."""
    if source.layout == "dicom":
        return []
    used = source.left_out | {path for case in source.cases.values() for path in (*case.images, *([case.label] if case.label else []))}
    named = {fault.file for fault in source.faults}
    converted = to_be_converted(source)  # their labels are used as soon as the images are
    faults = []
    for folder in sorted({path.parent for path in used}):
        for name in _names(folder):
            path = folder / name
            if path not in used and split_ending(name)[1] and not name.startswith(".") and (file := source.relative(path)) not in named:
                if split_ending(name)[0] in converted:
                    continue
                message = "is used by no case; list it, or move it away"
                case = re.sub(r"_\d{4}$", "", split_ending(name)[0])
                faults.append(_fault(Code.FILE_UNUSED, message, case=case, file=file))
    return faults


def check_whole(source: Source, facts: Iterable[CaseFacts]) -> list[Fault]:
    """Return faults that no case has alone. ``facts`` are of all cases that will be there and could be read."""
    known = list(facts)
    labelled = [fact for fact in known if fact.labelled]
    return [
        *_check_number(source, labelled),
        *_check_labels(source, labelled),
        *_check_dimensions(known),
        *_check_orders(source, known),
        *_check_plans([fact for fact in labelled or known if len(fact.shape) == len(fact.spacing) == 3]),
    ]


def _check_number(source: Source, labelled: list[CaseFacts]) -> list[Fault]:
    if len(labelled) != 1 or sum(case.labelled for case in source.cases.values()) > 1:
        return []
    message = "is the only labelled case; add cases, or no fold can be validated"
    return [_fault(Code.SINGLE_CASE, message, case=labelled[0].case, file=labelled[0].file)]


def _check_labels(source: Source, labelled: list[CaseFacts]) -> list[Fault]:
    present = {value for fact in labelled for value in fact.values}
    if not labelled or not present:
        return []
    if present == {0}:
        return [_fault(Code.LABELS_ALL_EMPTY, f"all {len(labelled)} labels hold background only; export the labels again")]
    if present <= {0, source.tables.labels.get("ignore")}:
        message = f"all {len(labelled)} labels hold nothing but background and 'ignore'; export the labels again"
        return [_fault(Code.LABELS_ALL_EMPTY, message)]
    faults = []
    for name, entry in source.tables.labels.items():
        values = set(entry if isinstance(entry, list) else [entry])
        if not values & present:
            message = f"label {name!r}={entry!r} is in none of {len(labelled)} cases; check whether an export lost it"
            faults.append(_fault(Code.LABEL_UNUSED, message, file="dataset.json" if (source.root / "dataset.json").exists() else None))
    return faults


def _check_dimensions(known: list[CaseFacts]) -> list[Fault]:
    flat = [fact for fact in known if len(fact.shape) == 3 and min(fact.shape) == 1]
    solid = [fact for fact in known if len(fact.shape) == 3 and min(fact.shape) > 1]
    if not flat or not solid:
        return []
    odd, others, what = (
        (solid, flat, "a volume among 2D cases") if len(solid) < len(flat) else (flat, solid, "a single slice among volumes")
    )
    named = ", ".join(fact.case for fact in others[:_NAMED])
    return [
        _fault(Code.DIMENSION_MIXED, f"has the shape {tuple(fact.shape)}: {what} ({named}, ...)", case=fact.case, file=fact.file)
        for fact in odd
    ]


def _check_orders(source: Source, known: list[CaseFacts]) -> list[Fault]:
    """Warn of mixed voxel orders, since nnU-Net learns from voxels as they are stored."""
    if source.reader.endswith("WithReorient"):
        return []
    counts = Counter(fact.order for fact in known if fact.order)
    if len(counts) < 2:
        return []
    common, count = counts.most_common(1)[0]
    message = (
        "has the voxel order {} where {} of {} cases have {}; nnU-Net learns from voxels as they are stored, reorient image and label alike"
    )
    return [
        _fault(Code.VOXEL_ORDER_MIXED, message.format(fact.order, count, counts.total(), common), case=fact.case, file=fact.file)
        for fact in known
        if fact.order and fact.order != common
    ]


def _check_plans(known: list[CaseFacts]) -> list[Fault]:
    """Find what would make nnU-Net plan networks that cannot be trained, or that see lines instead of slices."""
    shapes = [fact.shape for fact in known]
    spacings = [nnunet_spacing(fact.spacing, planar=fact.planar) for fact in known]
    if not known:
        return []
    slices = across_the_slice(shapes, spacings)
    if slices:
        return [_fault(Code.SLICE_DIRECTION, slices[place], case=known[place].case, file=known[place].file) for place in sorted(slices)]
    small = too_small(shapes, spacings)
    return [_fault(Code.IMAGE_SMALL, small)] if small else []


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # each missing file in it is reported by its case
        return []


def _fault(code: Code, message: str, *, case: str | None = None, file: str | None = None) -> Fault:
    return Fault(code=code, severity=FAULT_INFO[code].severity, message=message, case=case, file=file)


def facts_of(source: Source, checked: Sequence[CheckedCase]) -> list[CaseFacts]:
    """Return what the check of the whole needs of cases that were just read."""
    return [
        CaseFacts(
            case=item.case.case,
            file=source.relative(item.case.images[0]) if item.case.images else None,
            labelled=bool(item.values),
            shape=item.shape,
            values=item.values,
            spacing=item.spacing,
            order=item.order,
            planar=item.planar,
        )
        for item in checked
    ]


def ordered(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Return each fault once, errors first, then by case, file and code; unprintable names are escaped."""
    unique = {(fault.code, fault.case, fault.file, fault.message): shown(fault) for fault in faults}
    return tuple(
        replace(fault, code=str(fault.code))
        for fault in sorted(unique.values(), key=lambda fault: (fault.severity, fault.case or "", fault.file or "", fault.code))
    )
