"""Reads the Medical Segmentation Decathlon layout: ``dataset.json`` lists the files; 4D images hold channels on the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.labels import decathlon_labels
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, add_named
from nnunet_jobs.dataset.names import split_ending
from nnunet_jobs.faults.codes import Code


def listed(source: Source, description: Description) -> Iterator[tuple[str, str, str | None]]:
    """Yield (case, image, label) of every usable entry of ``training`` and ``test`` (label None); the others become faults."""
    for key, labelled in (("training", True), ("test", False)):
        entries = description.get(key, [])
        if not isinstance(entries, list):
            source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message=f"{key!r} must be a list"))
            continue
        for number, entry in enumerate(entries):
            image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
            if not isinstance(image, str) or (labelled and not isinstance(label, str)):
                message = f"{key}[{number}] must name an image{' and a label' if labelled else ''}"
                source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message=message))
                continue
            yield split_ending(PurePosixPath(image).name)[0], image, label if labelled else None


def describe(params: RegisterParams, root: Path, description: Description) -> Description:
    """Turn the labels into name-to-value form."""
    return {**description, "labels": decathlon_labels(description.get("labels"))}


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    for case, image, label in listed(source, description):
        add_named(source, case, [image], label, labelled=label is not None)


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    version_2 = "file_ending" in description and "channel_names" in description  # some converters leave the old list beside them
    return isinstance(description.get("training"), list) and not version_2


_EXPECTS = "a dataset.json with the list 'training' of images and labels (Medical Segmentation Decathlon)"
LAYOUT = Layout(name="decathlon", expects=_EXPECTS, recognise=_recognise, describe=describe, read=_read)
