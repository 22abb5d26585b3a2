"""The program that reads and writes DICOM files for other processes. :mod:`nnunet_jobs.dicom.workers` starts it."""

from __future__ import annotations

import sys

from nnunet_jobs.sandbox.worker import Task, main


def _task(name: str) -> Task:
    """Find a task. Tasks import their libraries here, before the memory limit applies."""
    if name == "header":
        from nnunet_jobs.dicom import header

        return header.task
    if name == "convert":
        from nnunet_jobs.dicom import convert

        return convert.task
    if name == "label":
        from nnunet_jobs.dicom import label_task

        return label_task.task
    if name == "deidentify":
        from nnunet_jobs.dicom import deidentify

        return deidentify.task
    raise ValueError(f"no task {name!r}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], _task))
