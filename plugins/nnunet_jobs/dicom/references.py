"""Finds the images that a SEG or RTSTRUCT describes: by series, by image, or by frame of reference.

The sequences that name series and images may all be missing (they are of type 3), so the next weaker one is used then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """UIDs that an object names: of series, of images, and of frames of reference."""

    series: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    frames: frozenset[str] = frozenset()

    def point_to(self, *, series: str, images: Collection[str], frame: str) -> bool:
        """Whether these are references to an image series.

        Args:
            series: Its SeriesInstanceUID.
            images: Its SOPInstanceUIDs.
            frame: Its FrameOfReferenceUID; empty if it has none.
        """
        if series in self.series:
            return True
        if self.images:
            return not self.images.isdisjoint(images)
        return not self.series and bool(frame) and frame in self.frames


def references_of(dataset: Any) -> References:
    """Return the references of a SEG or RTSTRUCT."""
    series, images, frames = set[str](), set[str](), {_uid(dataset, "FrameOfReferenceUID")}
    for item in items(dataset, "ReferencedSeriesSequence"):
        series.add(_uid(item, "SeriesInstanceUID"))
        images |= {_uid(image, "ReferencedSOPInstanceUID") for image in items(item, "ReferencedInstanceSequence")}
    images |= {_uid(image, "ReferencedSOPInstanceUID") for image in items(dataset, "SourceImageSequence")}
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in items(dataset, keyword):
            for derivation in items(group, "DerivationImageSequence"):
                images |= {_uid(image, "ReferencedSOPInstanceUID") for image in items(derivation, "SourceImageSequence")}
    for outer in items(dataset, "ReferencedFrameOfReferenceSequence"):
        frames.add(_uid(outer, "FrameOfReferenceUID"))
        for study in items(outer, "RTReferencedStudySequence"):
            for inner in items(study, "RTReferencedSeriesSequence"):
                series.add(_uid(inner, "SeriesInstanceUID"))
                images |= set(_contoured(inner))
    frames |= {_uid(item, "ReferencedFrameOfReferenceUID") for item in items(dataset, "StructureSetROISequence")}
    for roi in items(dataset, "ROIContourSequence"):
        for contour in items(roi, "ContourSequence"):
            images |= set(_contoured(contour))
    return References(series=frozenset(series - {""}), images=frozenset(images - {""}), frames=frozenset(frames - {""}))


def items(dataset: Any, keyword: str) -> Iterator[Any]:
    """Yield the items of a sequence; none if it is missing, empty, or not a sequence."""
    for item in dataset.get(keyword) or ():
        if hasattr(item, "get"):
            yield item


def _contoured(holder: Any) -> Iterator[str]:
    return (_uid(image, "ReferencedSOPInstanceUID") for image in items(holder, "ContourImageSequence"))


def _uid(dataset: Any, keyword: str) -> str:
    value = dataset.get(keyword)
    return str(value).strip(" \0") if isinstance(value, str) else ""
