"""What the layouts share: a source and its cases as listed, what a layout is, and how folders of images become cases."""

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
        images: One file a channel, or a single 4D file that holds them all along its last axis.
        label: Label image, None for test images.
        labelled: A label is due.
        holdout: The source itself keeps the case for testing.
        training: The source itself says that the case is trained on.
        group: Patient, where the source itself says so; ``group_pattern`` says it otherwise.
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
        layout: Which one it is.
        cases: Cases by id.
        tables: Channels and labels.
        splits_4d: Whether 4D images are channels along the last axis.
        faults: What the listing alone shows to be wrong.
        extras: Name, licence, reference and the like, carried into ``dataset.json``.
        renamed: Id in the source to the id it is registered under, for those that differ, of this and earlier runs.
        left_out: Files of withdrawn cases, of which nothing more is said.
        reader: Class name of nnU-Net's reader that will read the registered files.
        units: What the values of a channel are, such as ``BQML`` for PET, by the channel's name, where the source says
            it.
        splits: The source's own, None where it has none; see :mod:`nnunet_jobs.dataset.own_splits`.
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
        """A file's name for people: relative to the source."""
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
        """The images' commonest ending; ``.nii`` only when no image is compressed, since NIfTI files can be recoded."""
        endings = Counter(split_ending(path.name)[1] for case in self.cases.values() for path in case.images)
        common = max(endings, key=lambda ending: (endings[ending], ending), default=".nii.gz")
        return ".nii.gz" if common == ".nii" and ".nii.gz" in endings else common or ".nii.gz"


Description = dict[str, Any]


def as_it_is(params: RegisterParams, root: Path, description: Description) -> Description:
    """For layouts whose ``dataset.json`` has nnU-Net's own form, or which have none."""
    return description


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay out a dataset on disk.

    Attributes:
        name: What ``layout`` calls it.
        expects: What must be there for it to be recognised, for the message when nothing is.
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
    """File names in a folder of the source; faults where there is no such folder or it leaves the source."""
    path = source.root / folder
    if not os.path.isdir(path):
        message = "is a link that leads nowhere or in a circle; copy the folder itself" if broken_link(path) else "the folder is missing"
        source.faults.append(Fault(code=Code.IMAGE_MISSING, file=folder, message=message))
        return []
    try:
        check_links(source.root, path)
    except UnusableName as refused:
        source.faults.append(refused.fault)
        return []
    return without_sidecars(listing(source.root, path, source.faults))


def channel_files(source: Source, folder: str, match: Callable[[str], re.Match[str] | None], *, fix: str) -> dict[str, dict[int, Path]]:
    """Image files of a folder by case and channel.

    Args:
        source: The source that gets the cases.
        folder: Folder to list.
        match: Match of a file name, with the groups ``case`` and perhaps ``channel`` (number or name).
        fix: Said about names that do not match.
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
    """The ending that files of the source should have."""
    return split_ending(fix)[1] or source.file_ending()


def in_order(source: Source, case: str, files: Mapping[int, Path]) -> tuple[Path, ...]:
    """A case's files by channel, with faults for gaps. A lone file may hold all channels: 4D where the layout allows it, or colours."""
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
    """What a missing channel's file would be called, to judge by a file that is there."""
    there, path = next(iter(files.items()))
    place = path.name.rfind(f"_{there:04d}")
    name = path.name if place < 0 else f"{path.name[:place]}_{channel:04d}{path.name[place + 5 :]}"
    return source.relative(path.with_name(name))


def to_be_converted(source: Source) -> set[str | None]:
    """Cases whose image has an ending that is not the dataset's, or none that nnU-Net reads."""
    return {fault.case for fault in source.faults if fault.code in (Code.ENDING_MIXED, Code.ENDING_UNSUPPORTED)}


def without_image(source: Source, folder: str | None, names: set[str]) -> None:
    """Faults of label files that no image belongs to. Where the image has another ending, that is the fault, and is said already."""
    converted = to_be_converted(source)
    for name in sorted(name for name in names if split_ending(name)[0] not in converted):
        message = "no image belongs to this label file; add the image or move the label away"
        case = split_ending(name)[0]
        source.faults.append(Fault(code=Code.LABEL_WITHOUT_IMAGE, case=case, file=f"{folder}/{name}", message=message))
