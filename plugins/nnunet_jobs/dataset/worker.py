"""The program that reads cases for :mod:`nnunet_jobs.dataset.workers`. A bad file may crash this process and no other."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.dataset.sources import Source, SourceCase
from nnunet_jobs.dataset.validate import CheckedCase, check_case
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox import worker

log = logging.getLogger("nnunet_jobs")
_memory: list[worker.MemoryLimit] = []  # one for all cases: libraries that an earlier case loaded stay in memory


def case_to_json(case: SourceCase) -> dict[str, Any]:
    """Convert a case for a request."""
    label = str(case.label) if case.label else None
    return {"case": case.case, "images": [str(path) for path in case.images], "label": label, "labelled": case.labelled}


def source_to_json(source: Source) -> dict[str, Any]:
    """Convert what a case's check needs of its source."""
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


def check(data: dict[str, Any]) -> dict[str, Any]:
    """Check one case, see :func:`~nnunet_jobs.dataset.validate.check_case`. Notes say which file is being read.

    Args:
        data: ``source``, ``case``, known ``faults`` of the case, ``tolerance``, and ``budget`` in bytes.
    """
    asked = data["source"]
    source = Source(
        root=Path(asked["root"]),
        layout=asked["layout"],
        tables=Tables(**asked["tables"]),
        splits_4d=asked["splits_4d"],
        reader=asked["reader"],
        faults=[Fault(**fault) for fault in data["faults"]],
    )
    if not _memory:
        _memory.append(worker.MemoryLimit(data["budget"]))
    _memory[0].begin()
    return _check(_case(data["case"]), source, data["tolerance"], _memory[0]).to_json()


def _check(case: SourceCase, source: Source, tolerance: float, memory: worker.MemoryLimit) -> CheckedCase:
    try:
        return check_case(
            case,
            source,
            tolerance=tolerance,
            beat=worker.alive,
            reserve=memory.reserve,
            on_file=lambda name: worker.note({"file": name}),
        )
    except MemoryError as error:
        code, message = Code.MEMORY_LIMIT, f"there was not enough memory to check it ({error or 'no more could be had'})"
    except Exception as error:  # unexpected, and the other cases must still be checked
        log.exception("the check of case %s failed", ascii(case.case))
        code, message = Code.READER_CRASHED, f"its check failed ({library_says(error)}); see the log for details, and write its files again"
    return CheckedCase(case=case, faults=(Fault(code=code, case=case.case, message=message),))


def _find(name: str) -> worker.Task:
    if name != "check":
        raise ValueError(f"no task {name!r}")
    # nibabel imports pydicom only to look for private headers in NIfTI files; that takes three quarters of the start-up time.
    sys.modules.setdefault("pydicom", None)  # type: ignore[arg-type]
    import nibabel  # noqa: F401
    import numpy as np

    np.seterr(all="ignore")  # odd values are reported as faults; warnings in the log would not name the file
    return check


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(worker.main(sys.argv[1:], _find))
