"""Keeps the old name of :mod:`nnunet_jobs.contract.storage.workspace` for programs written for version 0.1.0; removed in 0.3.0."""

from __future__ import annotations

import warnings

from nnunet_jobs.contract.storage.workspace import Workspace

__all__ = ["Workspace"]

warnings.warn(
    "nnunet_jobs.contract.workspace is removed in version 0.3.0; import from nnunet_jobs.contract.storage.workspace",
    DeprecationWarning,
    stacklevel=2,
)
