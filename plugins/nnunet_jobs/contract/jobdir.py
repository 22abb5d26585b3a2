"""Keeps the old name of :mod:`nnunet_jobs.contract.job.folder` for programs written for version 0.1.0; removed in 0.3.0."""

from __future__ import annotations

import warnings

from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.state import Phase

__all__ = ["JobDir", "Phase"]

warnings.warn(
    "nnunet_jobs.contract.jobdir is removed in version 0.3.0; import from nnunet_jobs.contract.job.folder",
    DeprecationWarning,
    stacklevel=2,
)
