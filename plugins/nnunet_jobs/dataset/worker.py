"""The process that reads cases: ``python -m nnunet_jobs.dataset.worker PARENT``. It may die of what it reads; nobody else does.

Requests and answers are JSON lines. While it reads it writes a byte for each MiB, so that its parent knows it lives::

    parent  {"root": ..., "layout": ..., "tables": ..., "splits_4d": ..., "reader": ..., "tolerance": ..., "budget": bytes}
    worker  {"ready": true}
    parent  {"case": {...}, "faults": [...]}
    worker  {"file": "imagesTr/a_0000.nii.gz"}  ...{"file": "labelsTr/a.nii.gz"}  .{"answer": {...}}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.validate import CheckedCase, check_case
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.processes import die_with_parent

log = logging.getLogger("nnunet_jobs")
BEAT = b"."
_HEADROOM = 768 << 20  # bytes of address space beside the voxels: libraries that are loaded when their first file comes
_MIB = 1 << 20


class Memory:
    """The limit of this process's address space, raised before voxels are read and never above the budget.

    Address space is what the kernel can refuse before anything is used; resident memory can only be noticed after.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self._reserved = 0

    def begin(self) -> None:
        """A new case: nothing is reserved."""
        self._reserved = 0
        self._limit()

    def reserve(self, size: int) -> None:
        """Let ``size`` bytes more be used.

        Raises:
            MemoryError: more than the budget.
        """
        self._reserved += size
        if self._reserved > self.budget:
            raise MemoryError(f"{self._reserved // _MIB} MiB where {self.budget // _MIB} MiB may be used")
        self._limit()

    def _limit(self) -> None:
        limit = self._base + _HEADROOM + self._reserved
        if self._hard != resource.RLIM_INFINITY:
            limit = min(limit, self._hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, self._hard))


def case_to_json(case: SourceCase) -> dict[str, Any]:
    """A case as a request carries it."""
    label = str(case.label) if case.label else None
    return {"case": case.case, "images": [str(path) for path in case.images], "label": label, "labelled": case.labelled}


def source_to_json(source: Source) -> dict[str, Any]:
    """What a case's check needs to know of its source."""
    return {
        "root": str(source.root),
        "layout": source.layout,
        "tables": source.tables.to_json(),
        "splits_4d": source.splits_4d,
        "reader": source.reader,
    }


def _case(data: Mapping[str, Any]) -> SourceCase:
    label = Path(data["label"]) if data["label"] is not None else None
    return SourceCase(case=data["case"], images=tuple(map(Path, data["images"])), label=label, labelled=data["labelled"])


def main(parent: int) -> None:
    """Answer requests until the parent closes the pipe."""
    die_with_parent(signal.SIGKILL, parent=parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent, which ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    # nibabel imports pydicom only to look for private headers in NIfTI files; that is three quarters of our start.
    sys.modules.setdefault("pydicom", None)  # type: ignore[arg-type]
    import nibabel  # noqa: F401
    import numpy as np

    np.seterr(all="ignore")  # odd values are looked for and reported; the log would only repeat them without a name
    hello = json.loads(sys.stdin.buffer.readline())
    source = Source(
        root=Path(hello["root"]),
        layout=hello["layout"],
        tables=Tables(**hello["tables"]),
        splits_4d=hello["splits_4d"],
        reader=hello["reader"],
    )
    memory = Memory(hello["budget"])
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source.faults = [Fault(**fault) for fault in request["faults"]]
        memory.begin()
        _say(answers, {"answer": _check(_case(request["case"]), source, hello["tolerance"], memory, answers).to_json()})


def _check(case: SourceCase, source: Source, tolerance: float, memory: Memory, answers: BinaryIO) -> CheckedCase:
    def beat() -> None:
        answers.write(BEAT)

    try:
        return check_case(
            case,
            source,
            tolerance=tolerance,
            beat=beat,
            reserve=memory.reserve,
            on_file=lambda name: _say(answers, {"file": name}),
        )
    except MemoryError as error:
        code, message = Code.MEMORY_LIMIT, f"there was not enough memory to check it ({error or 'no more could be had'})"
    except Exception as error:  # nobody foresaw it, and the other cases are still to be checked
        log.exception("the check of case %s failed", ascii(case.case))
        code, message = Code.READER_CRASHED, f"its check failed ({library_says(error)}); the log has what is known, write its files anew"
    return CheckedCase(case=case, faults=(Fault(code=code, case=case.case, message=message),))


def _say(answers: BinaryIO, message: Mapping[str, Any]) -> None:
    data = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    with contextlib.suppress(BrokenPipeError):
        main(int(sys.argv[1]))
