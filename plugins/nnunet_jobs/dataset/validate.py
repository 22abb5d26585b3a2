"""Checks one case: each file alone, then channels and label against each other and against the tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.readers.agreement import Member, disagreements, voxel_order
from nnunet_jobs.dataset.readers.formats import read_volume
from nnunet_jobs.dataset.readers.volume import Array, Beat, Reserve, Volume
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.report.summary import summarise_case

_NO_MEMORY = "there was not enough memory to read it; check whether its size is correct, or give the step more"
_OnFile = Callable[[str], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCase:
    """A case after validation.

    Attributes:
        case: The case as it was listed.
        hashes: SHA-256 of each image file, in the order of ``case.images``.
        label_hash: Hash of the label.
        component: For each channel, its place on the last axis of the one image file; None where a file is a channel.
        shape: Voxels along x, y, z.
        spacing: Spacing in mm.
        values: Different label values.
        order: Order of the voxels, such as ``RAS``.
        planar: The image has two axes only.
        faults: All errors and warnings.
        summary: Result of :func:`~nnunet_jobs.dataset.summary.summarise_case`; None when no image could be read.
    """

    case: SourceCase
    hashes: tuple[str, ...] = ()
    label_hash: str | None = None
    component: tuple[int | None, ...] = ()
    channels: int = 0
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    values: tuple[int, ...] = ()
    order: str = ""
    planar: bool = False
    faults: tuple[Fault, ...] = field(default=())
    summary: dict[str, Any] | None = None

    @property
    def errors(self) -> list[Fault]:
        """Return the faults that forbid the case."""
        return [fault for fault in self.faults if fault.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return all fields except ``case``, for :meth:`from_json` in the process that asked."""
        data = {name: getattr(self, name) for name in _PLAIN}
        return {**data, "faults": [asdict(fault) for fault in self.faults]}

    @classmethod
    def from_json(cls, case: SourceCase, data: Mapping[str, Any]) -> CheckedCase:
        """Read what :meth:`to_json` wrote."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value := data[name], list) else value for name in _PLAIN}
        return cls(case=case, faults=tuple(Fault(**fault) for fault in data["faults"]), **plain)


_PLAIN = ("hashes", "label_hash", "component", "channels", "shape", "spacing", "values", "order", "planar", "summary")


def check_case(
    case: SourceCase, source: Source, *, tolerance: float, beat: Beat, reserve: Reserve = lambda _size: None, on_file: _OnFile = None
) -> CheckedCase:
    """Read every file of a case once and report all faults.

    Args:
        case: Case to check.
        source: Source of the case.
        tolerance: Relative tolerance of the label's spacing and of positions; see
            :func:`~nnunet_jobs.dataset.readers.agreement.disagreements`.
        beat: Called as a heartbeat; may raise to stop.
        reserve: Called with bytes before they are needed; may raise MemoryError, which becomes a fault.
        on_file: Called with the name of each file before it is read.
    """
    faults = list[Fault]()

    def read(path: Path, *, label: bool) -> Volume:
        name = source.relative(path)
        if on_file is not None:
            on_file(name)
        if not os.path.exists(path):
            code = Code.LABEL_MISSING if label else Code.IMAGE_MISSING
            message = "is a broken or circular link; copy the file itself" if os.path.islink(path) else "the file is missing"
            return Volume(faults=[Fault(code=code, case=case.case, file=name, message=message)])
        try:
            return read_volume(path, case=case.case, name=name, label=label, beat=beat, reserve=reserve, keep=True, reader=source.reader)
        except MemoryError as error:
            message = (
                f"needs more memory than allowed ({error}); check whether its size is correct, or give more" if str(error) else _NO_MEMORY
            )
            return Volume(faults=[Fault(code=Code.MEMORY_LIMIT, case=case.case, file=name, message=message)])

    images = [read(path, label=False) for path in case.images]
    label = read(case.label, label=True) if case.label else None
    names = [source.relative(path) for path in (*case.images, *([case.label] if case.label else []))]
    if label is None and case.labelled:
        message = "has no label; add the label file or remove the image"
        faults.append(Fault(code=Code.LABEL_MISSING, case=case.case, file=names[0] if names else None, message=message))
    if not images:
        faults.append(Fault(code=Code.IMAGE_MISSING, case=case.case, message="has no image"))
    for volume in (*images, *([label] if label else [])):
        faults += volume.faults
    component = _components(case, source, images, faults)
    members = [Member(name=name, volume=volume) for name, volume in zip(names, images, strict=False)]
    members += [Member(name=names[-1], volume=label, label=True)] if label else []
    faults += disagreements(members, case=case.case, tolerance=tolerance)
    if label and label.usable and source.tables.values:
        faults += _check_values(case, source.relative(case.label) if case.label else "", label, source.tables)
    first = images[0] if images else Volume()
    return CheckedCase(
        case=case,
        hashes=tuple(volume.sha256 for volume in images),
        label_hash=label.sha256 if label else None,
        component=component,
        channels=source.tables.channels if component else 0,
        shape=first.shape[:3],
        spacing=first.spacing,
        values=label.values if label else (),
        order=voxel_order(first.affine) if not first.planar else "",
        planar=first.planar,
        faults=tuple(faults),
        summary=_summary(images, label),
    )


def _summary(images: list[Volume], label: Volume | None) -> dict[str, Any] | None:
    channels: list[Array] = []
    for volume in images:
        if volume.array is not None:
            several = volume.array.ndim == 4
            channels += [volume.array[..., number] for number in range(volume.array.shape[3])] if several else [volume.array]
    if not channels:
        return None
    try:
        return summarise_case(channels, label.array if label else None, images[0].spacing, affine=images[0].affine)
    except MemoryError:
        return None  # a missing picture must not fail a sound case


def _components(case: SourceCase, source: Source, images: list[Volume], faults: list[Fault]) -> tuple[int | None, ...]:
    """Return which part of which file each channel is; a wrong number of channels becomes a fault."""
    expected = source.tables.channels
    if not images or not all(volume.sound for volume in images):
        return ()
    dimensions = [len(volume.shape) for volume in images]
    if len(images) == 1 and dimensions[0] == 4 and source.splits_4d:
        held = images[0].shape[3]
        if held == expected:
            return tuple(range(expected))
    elif 4 in dimensions:
        name = source.relative(case.images[dimensions.index(4)])
        message = f"has the shape {images[dimensions.index(4)].shape}; one file must hold one channel, three-dimensional"
        faults.append(Fault(code=Code.NOT_3D, case=case.case, file=name, message=message))
        return ()
    else:
        held = sum(volume.channels for volume in images)
        if held == expected:
            return (None,) * len(images)
        if any(fault.case == case.case and fault.code in (Code.CHANNEL_MISSING, Code.CHANNEL_EXTRA) for fault in source.faults):
            return ()  # the listing has reported it
    code = Code.CHANNEL_MISSING if held < expected else Code.CHANNEL_EXTRA
    message = f"has {held} channels where channel_names has {expected}; correct one of them"
    faults.append(Fault(code=code, case=case.case, file=source.relative(case.images[-1]), message=message))
    return ()


def _check_values(case: SourceCase, name: str, label: Volume, tables: Tables) -> list[Fault]:
    unknown = [value for value in label.values if value not in tables.values]
    if unknown:
        message = f"has the values {unknown[:10]} that no label declares ({sorted(tables.values)}); correct the image or label_names"
        return [Fault(code=Code.LABEL_UNDECLARED, case=case.case, file=name, message=message)]
    if label.values == (0,):
        return [Fault(code=Code.LABEL_EMPTY, severity="warning", case=case.case, file=name, message="holds background only")]
    return []
