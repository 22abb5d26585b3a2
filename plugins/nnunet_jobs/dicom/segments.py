"""Defines what SEG and RTSTRUCT readers return: named segments that can be painted, and their faults."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.faults.codes import Code

Mask = npt.NDArray[np.bool_]
_SHOWN = 40
_IDENTIFYING = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate", "AccessionNumber", "PatientBirthName", "StudyID")


@dataclass(slots=True)
class LabelFaults:
    """Collects the faults of one case's label objects, so that all of them are reported at once."""

    faults: list[Fault] = field(default_factory=list)

    def error(self, code: Code, message: str) -> None:
        """Add a fault that makes the label unusable."""
        self.faults.append(Fault(code=code, message=message))

    def warning(self, code: Code, message: str) -> None:
        """Add a fault that a person should look at."""
        self.faults.append(Fault(code=code, message=message, severity="warning"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment of one object.

    Attributes:
        name: Name in the object, which is free text and only for matching.
        shown: Form of the name that may be shown.
        source: The object, such as ``SEG 1 of 2``; never its file name or UID.
        paint: Sets the segment's voxels True in a mask in the Grid's (i, j, k) order, and reports what it could not
            place.
    """

    name: str
    shown: str
    source: str
    paint: Callable[[Mask, LabelFaults], None]

    def __str__(self) -> str:
        return f"segment {self.shown!r} of {self.source}"


def quiet_libraries() -> None:
    """Silence DICOM libraries: pydicom quotes odd values in warnings, highdicom logs UIDs and names."""
    import pydicom.config

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)


def shown_name(name: str, dataset: Any) -> str:
    """Return a segment's or ROI's name in a form that logs and faults may show.

    Authors of rules must see the name, but people type anything into it. So whatever identifies the object's patient is masked, as
    are runs of five digits or more (record numbers, dates); the rest is cut to 40 plain characters.
    """
    text = str(name)
    for part in _identifying(dataset):
        text = re.sub(re.escape(part), "***", text, flags=re.IGNORECASE)
    text = re.sub(r"\d(?:[ ./-]?\d){4,}", "***", text)
    text = re.sub(r"[^\w .,:;()+*/&<>=%-]", "?", text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _identifying(dataset: Any) -> list[str]:
    """Return parts of the patient's identifiers, longest first. Parts of one or two characters would mask too much of every name."""
    parts: set[str] = set()
    for keyword in _IDENTIFYING:
        value = dataset.get(keyword)
        for item in _each(value):
            whole = str(item).strip()
            parts |= {whole, *re.split(r"[\^=\s,/._-]+", whole)}
    return sorted((part for part in parts if len(part) > 2), key=len, reverse=True)


def _each(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) or not hasattr(value, "__iter__") or hasattr(value, "family_name") else value


def referenced(dataset: Any, *path: str) -> set[str]:
    """Return the UIDs at the end of a chain of sequences, such as ``("ReferencedSeriesSequence", "SeriesInstanceUID")``."""
    items = [dataset]
    for keyword in path[:-1]:
        items = [inner for item in items for inner in (item.get(keyword) or ())]
    return {str(item.get(path[-1])) for item in items if item.get(path[-1])}
