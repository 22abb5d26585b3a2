"""Paints and writes a case's label from its SEG and RTSTRUCT objects, in the sandbox."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.dicom.convert import write_volume
from nnunet_jobs.dicom.labels import Described, label_volume
from nnunet_jobs.dicom.model import Grid, Instance, Series
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox.workers import size_of

VERSION = 2
"""Version of the content of label files; it is part of the names in the cache."""


_REFERENCES = ("refers_to", "refers_to_images", "refers_to_frames")
_LEAST_S, _S_A_MIB = 900.0, 6.0
_LEAST_MIB, _BYTES_A_VOXEL, _MIB_A_MIB = 1024, 64, 24  # 17 MiB a MiB were measured with contours of 4 points


def request(
    described: Sequence[Described],
    rules: Mapping[str, Any] | None,
    label_names: Mapping[str, int],
    target: Path,
) -> dict[str, Any]:
    """Build the argument of :func:`task` as JSON; for the fields see :func:`nnunet_jobs.dicom.labels.label_volume`.

    Args:
        described: Label objects, each with the channel that it describes and its voxels; the label gets the voxels of
            the first.
    """
    return {
        "described": [
            {"object": _packed(item), "reference": _packed(reference), "grid": {**asdict(grid), "affine": grid.affine.tolist()}}
            for item, reference, grid in described
        ],
        "rules": dict(rules) if rules is not None else None,
        "label_names": dict(label_names),
        "target": str(target),
    }


def limits(described: Sequence[Described]) -> tuple[float, int]:
    """Return the seconds and MiB that reading may take: both depend on the size of the objects, memory also on the grid."""
    mib = size_of(instance.path for item, _, _ in described for instance in item.instances) / (1 << 20)
    voxels = max(grid.shape[0] * grid.shape[1] * grid.shape[2] for _, _, grid in described)
    return _LEAST_S + mib * _S_A_MIB, _LEAST_MIB + (voxels * _BYTES_A_VOXEL >> 20) + int(mib * _MIB_A_MIB)


def task(data: dict[str, Any]) -> dict[str, Any]:
    """Paint and write a label; return ``{"faults": [...], "config": None}``. The file exists unless a fault is an error.

    For a wrong rule, ``config`` is the message, and ``parts`` holds :attr:`ConfigError.parts`.
    """
    described = [(_unpacked(item["object"]), _unpacked(item["reference"]), _grid(item["grid"])) for item in data["described"]]
    if any(sha256_file(instance.path) != instance.sha256 for item, _, _ in described for instance in item.instances):
        changed = Fault(code=Code.SOURCE_CHANGED, message="a SEG or RTSTRUCT object changed while it was read; run again")
        return {"faults": [asdict(changed)], "config": None}
    _, reference, grid = described[0]
    faults: list[Fault] = []
    try:
        array = label_volume((), reference, grid, data["rules"], data["label_names"], others=described, on_warning=faults.append)
    except DataError as error:
        return {"faults": [asdict(fault) for fault in (*faults, *error.faults)], "config": None}
    except ConfigError as error:
        return {"faults": [], "config": str(error), "parts": error.parts}
    write_volume(array, grid.affine, Path(data["target"]))
    return {"faults": [asdict(fault) for fault in faults], "config": None}


def _grid(data: Mapping[str, Any]) -> Grid:
    columns, rows, slices = data["shape"]
    return Grid(
        shape=(columns, rows, slices),
        affine=np.array(data["affine"]),
        sop_uids=tuple(data["sop_uids"]),
        frames=tuple(data["frames"]),
    )


def _packed(series: Series) -> dict[str, Any]:
    files = [{**asdict(instance), "path": os.path.realpath(instance.path), "image": {}} for instance in series.instances]
    return {**asdict(series), "patient": "", "instances": files, "refers_to_images": (), "refers_to_frames": ()}


def _unpacked(data: Mapping[str, Any]) -> Series:
    instances = tuple(Instance(**{**item, "path": Path(item["path"])}) for item in data["instances"])
    return Series(**{**data, "instances": instances, **{name: tuple(data[name]) for name in _REFERENCES}})
