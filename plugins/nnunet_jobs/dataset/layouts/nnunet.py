"""Reads nnU-Net's raw layout, version 2: ``imagesTr/<case>_0000<ending>`` and ``labelsTr/<case><ending>``, or a ``dataset`` list."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import (
    Description,
    Layout,
    Source,
    SourceCase,
    add_named,
    channel_files,
    in_order,
    names_in,
    without_image,
)
from nnunet_jobs.dataset.names import ENDINGS
from nnunet_jobs.faults.codes import Code, data_error


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    return "file_ending" in description or ("channel_names" in description and (root / "imagesTr").is_dir())


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    ending = description.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        meant = f".{str(ending).lstrip('.').lower()}"
        fix = f"write {meant!r}" if meant in ENDINGS else "convert the images to .nii.gz and write '.nii.gz'"
        message = f"file_ending={ending!r} is not one that nnU-Net reads ({', '.join(ENDINGS)}); {fix}"
        raise data_error([Fault(code=Code.ENDING_UNSUPPORTED, file="dataset.json", message=message)], what="dataset.json")
    listed = description.get("dataset")
    if listed is not None:
        _listed(source, listed)
    else:
        _split_folder(source, "imagesTr", "labelsTr", ending, labelled=True)
    has_labels = os.path.lexists(source.root / "labelsTs")
    if os.path.lexists(source.root / "imagesTs"):
        _split_folder(source, "imagesTs", "labelsTs" if has_labels else None, ending, labelled=False)


def _listed(source: Source, listed: Any) -> None:
    """Read ``dataset.json["dataset"]``, which maps a case to its images and label, anywhere below the source."""
    if not isinstance(listed, dict):
        source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message="'dataset' must map cases to files"))
        return
    for case, entry in listed.items():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not isinstance(label, str):
            message = "'dataset' must name 'images' (a list) and a 'label' for the case"
            source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, case=case, file="dataset.json", message=message))
            continue
        add_named(source, str(case), images, label)


def _split_folder(source: Source, images: str, labels: str | None, ending: str, *, labelled: bool) -> None:
    """Read a pair of nnU-Net folders with ``<case>_0000<ending>`` and ``<case><ending>``."""
    pattern = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(ending), re.DOTALL)
    found = channel_files(source, images, lambda name: pattern.fullmatch(name), fix=f"expected <case>_0000{ending}")
    label_names = set(names_in(source, labels)) if labels else set()
    if labels and not os.path.isdir(source.root / labels):
        labelled = False  # the folder is the fault, not each of its cases
    if not os.path.isdir(source.root / images):
        return
    for case, files in found.items():
        name = f"{case}{ending}"
        if name not in label_names and f"{case}_0000{ending}" in label_names and f"{case}_0000" not in found:
            message = f"labels have no channel number; rename it to {name}"
            name = f"{case}_0000{ending}"
            source.faults.append(Fault(code=Code.NAME_UNMATCHED, case=case, file=f"{labels}/{name}", message=message))
        label = source.root / str(labels) / name if name in label_names else None
        label_names.discard(name)
        paths = in_order(source, case, files)
        source.add(
            SourceCase(case=case, images=paths, label=label, labelled=labelled or label is not None, holdout=not labelled and bool(label))
        )
    without_image(source, labels, label_names)


_EXPECTS = "a dataset.json with 'file_ending', or with 'channel_names' beside the folder imagesTr (nnU-Net raw, version 2)"
LAYOUT = Layout(name="nnunet", expects=_EXPECTS, recognise=_recognise, read=_read, splits_4d=False)
