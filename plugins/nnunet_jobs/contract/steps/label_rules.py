"""Parses the rules of ``label_rules``, which say which segments of a DICOM SEG or RTSTRUCT become which label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SKIP, PRIORITY, THRESHOLD = "skip", "priority", "threshold"
_RESERVED = (SKIP, PRIORITY, THRESHOLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRules:
    """Parsed rules. A segment whose name is a label's name, in any case, needs no rule.

    Attributes:
        names: Maps a label name to segment names or regular expressions; several segments are merged into one label.
        skip: Names or regular expressions of segments that become no label. It is not called ``ignore``, which is
            nnU-Net's special label.
        priority: Label names; where two of them overlap, the one named first gets the voxel.
        threshold: A fractional segment covers a voxel from this share (0 to 1) on.
    """

    names: Mapping[str, tuple[str, ...]]
    skip: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()
    threshold: float = 0.5

    @classmethod
    def parse(cls, rules: Mapping[str, Any] | None) -> LabelRules:
        """Read the field ``label_rules``.

        Raises:
            ValueError: A rule is malformed; the message names it and the fix.
        """
        rules = dict(rules or {})
        threshold = rules.pop(THRESHOLD, 0.5)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
            raise ValueError(f"{THRESHOLD}={threshold!r} must be a number above 0, at most 1")
        parsed = {name: _texts(name, value) for name, value in rules.items()}
        priority = parsed.pop(PRIORITY, ())
        for name, patterns in parsed.items():
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error}); escape special characters") from None
        return cls(names={name: found for name, found in parsed.items() if name != SKIP}, skip=parsed.get(SKIP, ()), priority=priority,
                   threshold=float(threshold))  # fmt: skip

    def check_labels(self, label_names: Mapping[str, Any]) -> None:
        """Check that the rules name existing labels.

        Raises:
            ValueError: A rule names another label, or a label has the name of a rule.
        """
        clash = [name for name in _RESERVED if name in label_names]
        if clash:
            raise ValueError(f"the label name {clash[0]!r} is a rule's name; rename the label")
        unknown = [name for name in (*self.names, *self.priority) if name not in label_names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a label; known: {', '.join(label_names)}, and the rules {', '.join(_RESERVED)}")

    def labels_of(self, segment: str, label_names: Mapping[str, Any]) -> tuple[str | None, ...]:
        """Return the labels that match a segment: none for an unknown segment, several for an ambiguous one, ``(None,)`` to skip it.

        A literal name precedes a regular expression, and a label's expression precedes one of ``skip``, so that ``skip: [".*"]``
        matches the rest.
        """
        literal = _folded(segment)
        exact = [name for name in label_names if literal in {_folded(text) for text in (name, *self.names.get(name, ()))}]
        if exact:
            return tuple(exact)
        if literal in map(_folded, self.skip):
            return (None,)
        found = [name for name, patterns in self.names.items() if _matches(patterns, segment)]
        if found:
            return tuple(found)
        return (None,) if _matches(self.skip, segment) else ()


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'{name}={value!r} must be a list of names, such as ["liver", "hepar.*"]')
    return tuple(texts)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _matches(patterns: tuple[str, ...], segment: str) -> bool:
    text = " ".join(segment.split())
    return any(re.fullmatch(pattern, text, re.IGNORECASE) for pattern in patterns)
