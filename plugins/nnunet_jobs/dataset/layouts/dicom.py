"""Reads the NIfTI files and the list of cases that :mod:`nnunet_jobs.dataset.dicom_source` made of a tree of DICOM files."""

from __future__ import annotations

from pathlib import Path

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, SourceCase
from nnunet_jobs.dataset.names import UnusableName, below

CASES = "dicom_cases"
"""Key of ``dataset.json`` that tells such a folder."""


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    return isinstance(description.get(CASES), dict)


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    """Read the cases. Those without a label are test cases; those without images were withdrawn, which the registration reports."""
    for case, entry in description[CASES].items():
        try:
            paths = tuple(below(source.root, image, case=case) for image in entry["images"])
            label = below(source.root, entry["label"], case=case) if entry["label"] else None
        except UnusableName as refused:
            source.faults.append(refused.fault)
            continue
        source.add(SourceCase(case=case, images=paths, label=label, labelled=label is not None, group=entry["group"]))
    source.faults += [Fault(**fault) for fault in description["faults"]]
    source.units = dict(description.get("units", {}))


_EXPECTS = "DICOM files, anywhere below the folder"
LAYOUT = Layout(name="dicom", expects=_EXPECTS, recognise=_recognise, read=_read, splits_4d=False)
