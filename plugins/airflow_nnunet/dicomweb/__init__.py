"""Finds complete studies in an archive (QIDO-RS), fetches them (WADO-RS) and stores results back (STOW-RS), over
DICOMweb.

These are network steps that run in the Airflow worker. They compute nothing, and each one continues where it stopped.
Credentials are kept in a connection of type ``dicomweb`` and never reach a job. Names, logs and XComs contain only
hashes, counts and study UIDs, and nothing that identifies a patient.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_nnunet.dicomweb.hook import DicomWebHook
    from airflow_nnunet.dicomweb.operators import DicomWebRetrieveOperator, DicomWebStoreOperator
    from airflow_nnunet.dicomweb.sensor import DicomWebStudySensor
    from airflow_nnunet.dicomweb.trigger import DicomWebStudyTrigger

__all__ = ["DicomWebHook", "DicomWebRetrieveOperator", "DicomWebStoreOperator", "DicomWebStudySensor", "DicomWebStudyTrigger"]

_HOMES = {
    "DicomWebHook": "hook",
    "DicomWebRetrieveOperator": "operators",
    "DicomWebStoreOperator": "operators",
    "DicomWebStudySensor": "sensor",
    "DicomWebStudyTrigger": "trigger",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
