"""Keeps the old name of :mod:`nnunet_jobs.contract.steps.segment_codes` for programs written for version 0.1.0; removed in 0.3.0."""

from __future__ import annotations

import warnings

from nnunet_jobs.contract.steps.segment_codes import parse_segment_codes

__all__ = ["parse_segment_codes"]

warnings.warn(
    "nnunet_jobs.contract.segment_codes is removed in version 0.3.0; import from nnunet_jobs.contract.steps.segment_codes",
    DeprecationWarning,
    stacklevel=2,
)
