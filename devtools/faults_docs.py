"""Makes ``docs/reference/faults.md`` from the table of codes."""

from __future__ import annotations

from nnunet_jobs.faults.codes import Code
from nnunet_jobs.faults.fixes import FAULT_INFO

_INTRODUCTION = """\
# Faults of a dataset

This page lists every fault that `python -m nnunet_jobs validate PATH` and `RegisterDatasetOperator` can find, with its fix. It is for
people who prepare a dataset. An error would spoil training or prediction, so nothing is registered until it is fixed. A warning is for
a person to look at. `--fix-plan` prints the fixes with the names of the files. The codes do not change, so programs can count them.

This page is made from the table of codes by `python -m devtools.reference_docs`.

| code | severity | what | fix |
|---|---|---|---|
"""


def page() -> str:
    """Return the page, with one row for each code."""
    rows = [f"| `{code}` | {FAULT_INFO[code].severity} | {FAULT_INFO[code].what} | {FAULT_INFO[code].fix} |" for code in Code]
    return _INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
