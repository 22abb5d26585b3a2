"""Reads nnU-Net's first raw layout, ``TaskXXX_Name``: a list as in the Decathlon, with channel numbers only on disk."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, SourceCase, in_order, names_in
from nnunet_jobs.dataset.layouts.decathlon import describe, listed
from nnunet_jobs.dataset.names import UnusableName, below, split_ending
from nnunet_jobs.faults.codes import Code

_LOOKED_AT = 50  # entries of 'training' that decide between the two layouts with this form of dataset.json
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    """Whether the list names ``a.nii.gz`` where the disk has ``a_0000.nii.gz`` instead."""
    training = description.get("training")
    if not isinstance(training, list) or "file_ending" in description:
        return False
    numbered = False
    for entry in training[:_LOOKED_AT]:
        image = entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(image, str) or not split_ending(image)[1]:
            continue
        stem, ending = split_ending(image)
        try:
            if below(root, image).exists():
                return False
            numbered |= below(root, f"{stem}_0000{ending}").exists()
        except (UnusableName, OSError):
            continue  # the list's reader reports it
    return numbered


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    folders: dict[str, dict[tuple[str, str], dict[int, Path]]] = {}
    for case, image, label in listed(source, description):
        try:
            image_path = below(source.root, image, case=case)
            label_path = below(source.root, label, case=case) if label is not None else None
        except UnusableName as refused:
            source.faults.append(refused.fault)
            continue
        folder = source.relative(image_path.parent)
        if folder not in folders:
            folders[folder] = _numbered(source, folder)
        files = folders[folder].get((case, split_ending(image)[1]), {})
        if not files:
            name = f"{case}_0000{split_ending(image)[1]}"
            message = f"no {name} for the {PurePosixPath(image).name} that dataset.json lists; add it or correct the list"
            source.faults.append(Fault(code=Code.IMAGE_MISSING, case=case, file=f"{folder}/{name}", message=message))
            continue
        if label_path is None:
            known = source.root / "labelsTs" / PurePosixPath(image).name
            label_path = known if known.is_file() else None
        held_out = label is None and label_path is not None
        images = in_order(source, case, files)
        labelled = label_path is not None
        source.add(SourceCase(case=case, images=images, label=label_path, labelled=labelled, holdout=held_out))


def _numbered(source: Source, folder: str) -> dict[tuple[str, str], dict[int, Path]]:
    """Return the files of a folder by case and ending, then channel."""
    found: dict[tuple[str, str], dict[int, Path]] = {}
    for name in names_in(source, folder):
        stem, ending = split_ending(name)
        match = _CHANNEL.fullmatch(stem)
        if match and ending:
            found.setdefault((match["case"], ending), {})[int(match["channel"])] = source.root / folder / name
    return found


_EXPECTS = "a dataset.json with the list 'training', and on disk imagesTr/<case>_0000.nii.gz for each of its images (nnU-Net version 1)"
LAYOUT = Layout(name="nnunet_v1", expects=_EXPECTS, recognise=_recognise, describe=describe, read=_read, splits_4d=False)
