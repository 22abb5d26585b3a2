"""Defines what the layouts share: a source with its cases, the layout itself, and how folders of images become cases."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.labels import Tables
from nnunet_jobs.dataset.names import (
    PICTURES,
    UnusableName,
    below,
    broken_link,
    check_links,
    foreign_ending,
    listing,
    split_ending,
    without_sidecars,
)
from nnunet_jobs.faults.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One case of a source.

    Attributes:
        case: Id.
        images: One file for each channel, or a single 4D file that holds all channels along its last axis.
        label: Label image, None for test images.
        labelled: The case should have a label.
        holdout: The source itself keeps the case for testing.
        training: The source itself uses the case for training.
        group: Patient, where the source itself names it; otherwise ``group_pattern`` finds it.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None
    labelled: bool = True
    holdout: bool = False
    training: bool = False
    group: str | None = None


@dataclass(slots=True, kw_only=True)
class Source:
    """A source as listed.

    Attributes:
        root: Resolved folder.
        layout: Name of the layout.
        cases: Cases by id.
        tables: Channels and labels.
        splits_4d: Whether 4D images are channels along the last axis.
        faults: Faults that the listing alone shows.
        extras: Name, licence, reference and the like, carried into ``dataset.json``.
        renamed: Id in the source to the id it is registered under, for those that differ, of this and earlier runs.
        left_out: Files of withdrawn cases, which are not reported.
        reader: Class name of nnU-Net's reader that will read the registered files.
        units: What the values of a channel are, such as ``BQML`` for PET, by the channel's name, where the source says
            it.
        splits: The source's own splits, None where it has none; see :mod:`nnunet_jobs.dataset.own_splits`.
    """

    root: Path
    layout: str
    tables: Tables
    splits_4d: bool
    cases: dict[str, SourceCase] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: set[Path] = field(default_factory=set)
    reader: str = ""
    units: dict[str, str] = field(default_factory=dict)
    splits: list[dict[str, list[str]]] | None = None

    def relative(self, path: Path) -> str:
        """Return a file's name relative to the source, for messages."""
        return str(path.relative_to(self.root))

    def add(self, case: SourceCase) -> None:
        """Add a case, or a fault when its id is there already."""
        if case.case in self.cases:
            file = self.relative(case.images[0]) if case.images else None
            message = "the case is there twice; keep one of them"
            self.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case.case, file=file, message=message))
        else:
            self.cases[case.case] = case

    def file_ending(self) -> str:
        """Return the images' most common ending; ``.nii`` only when no image is compressed, since NIfTI files can be recoded."""
        endings = Counter(split_ending(path.name)[1] for case in self.cases.values() for path in case.images)
        common = max(endings, key=lambda ending: (endings[ending], ending), default=".nii.gz")
        return ".nii.gz" if common == ".nii" and ".nii.gz" in endings else common or ".nii.gz"


Description = dict[str, Any]


def as_it_is(params: RegisterParams, root: Path, description: Description) -> Description:
    """Return the description unchanged, for layouts whose ``dataset.json`` has nnU-Net's own form, or which have none."""
    return description


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay out a dataset on disk.

    Attributes:
        name: Value of the field ``layout``.
        expects: What must be there for it to be recognised, for the message when no layout is.
        recognise: Whether a folder with this ``dataset.json`` (empty without one) has the layout.
        describe: Brings what the source says of channels and labels into the form of nnU-Net's ``dataset.json``.
        read: Lists the cases into a source.
        splits_4d: 4D images are channels along the last axis.
        described_by: The file that ``describe`` reads, named in faults of its tables.
    """

    name: str
    expects: str
    recognise: Callable[[RegisterParams, Path, Description], bool]
    read: Callable[[RegisterParams, Source, Description], None]
    describe: Callable[[RegisterParams, Path, Description], Description] = as_it_is
    splits_4d: bool = True
    described_by: str = "dataset.json"


def add_named(source: Source, case: str, images: list[str], label: str | None, *, labelled: bool = True) -> None:
    """Add a case whose files a description names, or a fault when a path leaves the source."""
    try:
        paths = tuple(below(source.root, image, case=case) for image in images)
        label_path = below(source.root, label, case=case) if label is not None else None
    except UnusableName as refused:
        source.faults.append(refused.fault)
        return
    source.add(SourceCase(case=case, images=paths, label=label_path, labelled=labelled))


def names_in(source: Source, folder: str) -> list[str]:
    """Return the file names in a folder of the source; add a fault if the folder is missing or leaves the source."""
    path = source.root / folder
    if not os.path.isdir(path):
        message = "is a broken or circular link; copy the folder itself" if broken_link(path) else "the folder is missing"
        source.faults.append(Fault(code=Code.IMAGE_MISSING, file=folder, message=message))
        return []
    try:
        check_links(source.root, path)
    except UnusableName as refused:
        source.faults.append(refused.fault)
        return []
    return without_sidecars(listing(source.root, path, source.faults))


def channel_files(source: Source, folder: str, match: Callable[[str], re.Match[str] | None], *, fix: str) -> dict[str, dict[int, Path]]:
    """Return the image files of a folder by case and channel.

    Args:
        source: The source that gets the cases.
        folder: Folder to list.
        match: Match of a file name, with the group ``case`` and optionally ``channel`` (number or name).
        fix: Message about names that do not match.
    """
    found: dict[str, dict[int, Path]] = {}
    by_name = {name: int(number) for number, name in source.tables.channel_names.items()}
    for name in names_in(source, folder):
        groups = matched.groupdict() if (matched := match(name)) else {}
        case, text = groups.get("case"), groups.get("channel")
        channel = 0 if text is None else int(text) if text.isdecimal() else by_name.get(text)
        if not split_ending(name)[1] and (foreign := foreign_ending(name)):
            stem = re.sub(r"_\d{4}$", "", name[: -len(foreign)])
            message = f"ends in {foreign}, which no reader of nnU-Net reads; convert it to {_wanted(fix, source)}, renaming is not enough"
            source.faults.append(Fault(code=Code.ENDING_UNSUPPORTED, case=stem, file=f"{folder}/{name}", message=message))
        elif not case or channel is None or not split_ending(name)[1]:
            reason = fix if channel is not None else f"channel {text!r} is not one of channel_names {list(by_name)}"
            if source.layout == "nnunet" and not fix.endswith(ending := split_ending(name)[1]):
                stem = re.sub(r"_\d{4}$", "", split_ending(name)[0])
                message = f"ends in {ending}, {fix}; convert the file or move it away"
                source.faults.append(Fault(code=Code.ENDING_MIXED, case=stem, file=f"{folder}/{name}", message=message))
                continue
            source.faults.append(
                Fault(code=Code.NAME_UNMATCHED, file=f"{folder}/{name}", message=f"{reason}; rename the file or move it away")
            )
        elif channel in found.setdefault(case, {}):
            message = f"channel {channel} is there twice: {found[case][channel].name!r} and {name!r}; keep one"
            source.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case, file=f"{folder}/{name}", message=message))
        else:
            found[case][channel] = source.root / folder / name
    return found


def _wanted(fix: str, source: Source) -> str:
    """Return the ending that files of the source should have."""
    return split_ending(fix)[1] or source.file_ending()


def in_order(source: Source, case: str, files: Mapping[int, Path]) -> tuple[Path, ...]:
    """Return a case's files by channel; gaps become faults. One file may hold all channels: 4D if the layout allows it, or colours."""
    expected = source.tables.channels
    lone_4d = set(files) == {0} and (source.splits_4d or files[0].name.endswith(PICTURES))
    missing = [number for number in range(expected) if number not in files]
    if missing and not lone_4d:
        source.faults.append(
            Fault(
                code=Code.CHANNEL_MISSING,
                case=case,
                file=_sibling(source, files, missing[0]),
                message=f"channels {missing} of {expected} are missing; add the files or change channel_names",
            )
        )
    extra = sorted(number for number in files if number >= expected)
    if extra:
        message = f"channels {extra} are not in channel_names ({expected} channels); name them, or remove the files"
        if source.layout == "folders":
            message += r", or, when the number belongs to the case id, set case_pattern to '(?P<case>.+)\.nii\.gz'"
        source.faults.append(Fault(code=Code.CHANNEL_EXTRA, case=case, file=source.relative(files[extra[0]]), message=message))
    return tuple(files[number] for number in sorted(files) if number < expected)


def _sibling(source: Source, files: Mapping[int, Path], channel: int) -> str:
    """Return the name that a missing channel's file would have, derived from a file that is there."""
    there, path = next(iter(files.items()))
    place = path.name.rfind(f"_{there:04d}")
    name = path.name if place < 0 else f"{path.name[:place]}_{channel:04d}{path.name[place + 5 :]}"
    return source.relative(path.with_name(name))


def to_be_converted(source: Source) -> set[str | None]:
    """Return cases whose image has another ending than the dataset, or one that nnU-Net does not read."""
    return {fault.case for fault in source.faults if fault.code in (Code.ENDING_MIXED, Code.ENDING_UNSUPPORTED)}


def without_image(source: Source, folder: str | None, names: set[str]) -> None:
    """Add faults of label files without an image, unless the image has a wrong ending, which is reported already."""
    converted = to_be_converted(source)
    for name in sorted(name for name in names if split_ending(name)[0] not in converted):
        message = "no image belongs to this label file; add the image or move the label away"
        case = split_ending(name)[0]
        source.faults.append(Fault(code=Code.LABEL_WITHOUT_IMAGE, case=case, file=f"{folder}/{name}", message=message))
