"""The packages that read DICOM are an extra: says so where they are not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nnunet_jobs.contract.failure import ConfigError


@contextlib.contextmanager
def dicom_packages(*, field: str, value: Any) -> Iterator[None]:
    """Import within this what needs the extra ``dicom``.

    Args:
        field: Field that asks for DICOM.
        value: Its value.

    Raises:
        ConfigError: A package is missing.
    """
    try:
        yield
    except ImportError as error:
        problem = f"reading DICOM needs {(error.name or '').partition('.')[0]}"
        raise ConfigError(field=field, value=value, problem=problem, fix="install airflow-provider-nnunet[dicom]") from error
