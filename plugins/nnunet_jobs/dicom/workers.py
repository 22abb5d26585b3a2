"""Starts processes that read and write DICOM files; :mod:`nnunet_jobs.dicom.worker` is the program that they run."""

from __future__ import annotations

from nnunet_jobs.sandbox.workers import Workers


def dicom_workers(count: int) -> Workers:
    """Make processes for the tasks of :mod:`nnunet_jobs.dicom.worker`; ``count`` of them work at the same time."""
    return Workers(count, program="nnunet_jobs.dicom.worker")
