"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at and what was found. ``blocks`` means that jobs cannot run like this."""

    topic: str
    text: str
    ok: bool = True
    blocks: bool = False

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL" if self.blocks else "warn"
        return f"{mark}  {self.topic}: {self.text}"
