"""A case's label from its SEG and RTSTRUCT objects, painted and written under guard."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.files import sha256_file
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dicom.convert import write_volume
from nnunet_jobs.dicom.labels import label_volume
from nnunet_jobs.dicom.model import Grid, Instance, Series

VERSION = 1
"""Of what a label file holds; part of the names in the cache."""


def request(
    objects: Sequence[Series],
    reference: Series,
    grid: Grid,
    rules: Mapping[str, Any] | None,
    label_names: Mapping[str, int],
    target: Path,
) -> dict[str, Any]:
    """Argument of :func:`task`, JSON; for the fields see :func:`nnunet_jobs.dicom.labels.label_volume`."""
    return {
        "objects": [_packed(series) for series in objects],
        "reference": _packed(reference),
        "grid": {**asdict(grid), "affine": grid.affine.tolist()},
        "rules": dict(rules) if rules is not None else None,
        "label_names": dict(label_names),
        "target": str(target),
    }


def task(data: dict[str, Any]) -> dict[str, Any]:
    """Paint and write a label: ``{"faults": [...], "config": text or None}``; the file is there unless one of them is an error."""
    objects, reference = [_unpacked(series) for series in data["objects"]], _unpacked(data["reference"])
    if any(sha256_file(instance.path) != instance.sha256 for series in objects for instance in series.instances):
        changed = Fault(code=Code.SOURCE_CHANGED, message="a SEG or RTSTRUCT object changed while it was read; run again")
        return {"faults": [asdict(changed)], "config": None}
    shape = data["grid"]
    grid = Grid(
        shape=(shape["shape"][0], shape["shape"][1], shape["shape"][2]),
        affine=np.array(shape["affine"]),
        sop_uids=tuple(shape["sop_uids"]),
        frames=tuple(shape["frames"]),
    )
    faults: list[Fault] = []
    try:
        array = label_volume(objects, reference, grid, data["rules"], data["label_names"], on_warning=faults.append)
    except DataError as error:
        return {"faults": [asdict(fault) for fault in (*faults, *error.faults)], "config": None}
    except ConfigError as error:
        return {"faults": [], "config": str(error)}
    write_volume(array, grid.affine, Path(data["target"]))
    return {"faults": [asdict(fault) for fault in faults], "config": None}


def _packed(series: Series) -> dict[str, Any]:
    files = [{**asdict(instance), "path": os.path.realpath(instance.path)} for instance in series.instances]
    return {**asdict(series), "patient": "", "instances": files}


def _unpacked(data: Mapping[str, Any]) -> Series:
    instances = tuple(Instance(**{**item, "path": Path(item["path"])}) for item in data["instances"])
    return Series(**{**data, "instances": instances, "refers_to": tuple(data["refers_to"])})
