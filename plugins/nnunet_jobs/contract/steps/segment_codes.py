"""Parses the field ``segment_codes``, which describes segments in a coding scheme, and checks DICOM's limits on lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LENGTHS = (("value", 16), ("scheme", 16), ("meaning", 64))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedConcept:
    """One coded concept, such as ``10200004``, ``SCT`` (SNOMED CT), ``Liver``."""

    value: str
    scheme: str
    meaning: str


# Category and type of a segment without a code; they are valid for every structure in a patient.
TISSUE = CodedConcept(value="85756007", scheme="SCT", meaning="Tissue")


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentCodes:
    """DICOM's segmented property category (such as ``Anatomical Structure``) and type (such as ``Liver``) of one label."""

    category: CodedConcept = TISSUE
    kind: CodedConcept = TISSUE


def parse_segment_codes(field: Mapping[str, Any] | None) -> dict[str, SegmentCodes]:
    """Read ``segment_codes``: label name to ``[value, scheme, meaning]`` (its type), or to ``{"category": [...], "type": [...]}``.

    Raises:
        ValueError: An entry is malformed or too long for DICOM; the message names it and the fix.
    """
    parsed = {}
    for label, entry in (field or {}).items():
        table = entry if isinstance(entry, Mapping) else {"type": entry}
        unknown = set(table) - {"category", "type"}
        if unknown:
            raise ValueError(f"{label!r} has {sorted(unknown)[0]!r}; known are category and type")
        codes = {name: _code(f"{label!r}, {name}", raw) for name, raw in table.items()}
        parsed[label] = SegmentCodes(category=codes.get("category", TISSUE), kind=codes.get("type", TISSUE))
    return parsed


def _code(where: str, raw: Any) -> CodedConcept:
    if not isinstance(raw, list | tuple) or len(raw) != 3 or not all(isinstance(part, str) and part.strip() for part in raw):
        raise ValueError(f'{where}={raw!r} must be [value, scheme, meaning], such as ["10200004", "SCT", "Liver"]')
    for (name, length), part in zip(_LENGTHS, raw, strict=True):
        if len(part) > length or "\\" in part or not part.isprintable():
            raise ValueError(f"{where}: the {name} {part!r} must be at most {length} plain characters without a backslash")
    value, scheme, meaning = raw
    return CodedConcept(value=value, scheme=scheme, meaning=meaning)
