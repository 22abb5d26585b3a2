"""Defines one line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass

SYNC = "run airflow nnunet sync-pools, or python -m airflow_nnunet sync-pools"
"""What to do about a pool that is missing or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Describes what was checked and found. ``blocks`` means that jobs cannot run."""

    topic: str
    text: str
    ok: bool = True
    blocks: bool = False

    def __str__(self) -> str:
        mark = "ok  " if self.ok else "FAIL" if self.blocks else "warn"
        return f"{mark}  {self.topic}: {self.text}"
