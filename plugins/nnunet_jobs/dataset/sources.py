"""What a source holds: its cases, channels, labels and description, in any of the known layouts. Reads names, not images."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.params import RegisterParams
from nnunet_jobs.dataset.faults import Code, data_error
from nnunet_jobs.dataset.labels import Tables, channel_table, decathlon_labels, label_table
from nnunet_jobs.dataset.names import (
    ENDINGS,
    PICTURES,
    Refused,
    below,
    check_case_ids,
    check_links,
    listing,
    split_ending,
    without_sidecars,
)
from nnunet_jobs.dataset.volume import open_regular

_EXTRAS = ("description", "reference", "licence", "license", "release", "citation", "overwrite_image_reader_writer")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One case of a source.

    Attributes:
        case: id. images: one file a channel, or a single 4D file that holds them all along its last axis.
        label: label image, None for test images. labelled: a label is due. holdout: the source itself keeps the case for testing.
        group: patient, where the source itself says so; ``group_pattern`` says it otherwise.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None
    labelled: bool = True
    holdout: bool = False
    group: str | None = None


@dataclass(slots=True, kw_only=True)
class Source:
    """A source as listed.

    Attributes:
        root: resolved folder. layout: which one it is. cases: by id. tables: channels and labels.
        splits_4d: whether 4D images are channels along the last axis. faults: what the listing alone shows to be wrong.
        extras: name, licence, reference and the like, carried into ``dataset.json``.
    """

    root: Path
    layout: str
    tables: Tables
    splits_4d: bool
    cases: dict[str, SourceCase] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)

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


def read_source(params: RegisterParams, root: Path, *, known: Iterable[str] = ()) -> Source:
    """List a source.

    Args:
        params: of the step. root: resolved folder of the source. known: registered case ids that stay, whose names may clash.

    Raises:
        ConfigError: no such folder, layout not recognised, or a field names something that is not there.
        DataError: the description is unusable.
    """
    if not root.is_dir():
        raise ConfigError(f"source={params.source!r}: no such folder")
    description = _description(root)
    layout = params.layout if params.layout != "auto" else _detect(params, root, description)
    tables, faults = _tables(params, layout, description)
    source = Source(root=root, layout=layout, tables=tables, splits_4d=layout != "nnunet", faults=faults)
    source.extras = {key: description[key] for key in _EXTRAS if isinstance(description.get(key), str)}
    _LAYOUTS[layout](params, source, description)
    if not source.cases and not source.faults:
        source.faults.append(Fault(code=Code.NO_CASES, message=f"no cases found in {root} (layout {layout})"))
    hostile = check_case_ids(source.cases, known=known)
    for fault in hostile:
        case = source.cases[fault.case or ""]
        source.faults.append(replace(fault, file=source.relative(case.images[0])) if case.images else fault)
    for fault in hostile:
        source.cases.pop(fault.case or "", None)  # named already; nothing more is done with such a name
    return source


def _description(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not os.path.lexists(path):
        return {}
    try:
        check_links(root, path)
        with open_regular(path) as file:
            data = json.loads(file.readall())
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
    except Refused as refused:
        raise data_error([refused.fault], what="dataset.json") from refused
    except (ValueError, OSError, RecursionError) as error:
        fault = Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message=f"cannot be read as JSON: {error}")
        raise data_error([fault], what="dataset.json") from error
    return data


def _detect(params: RegisterParams, root: Path, description: dict[str, Any]) -> str:
    if isinstance(description.get("training"), list):
        return "decathlon"
    if "file_ending" in description or ("channel_names" in description and (root / "imagesTr").is_dir()):
        return "nnunet"
    if (root / params.images).is_dir() and (root / params.labels).is_dir():
        return "folders"
    raise ConfigError(
        f"source={params.source!r}: layout not recognised; expected a dataset.json with 'training' (Decathlon) or 'file_ending' (nnU-Net), "
        f"or the folders {params.images!r} and {params.labels!r}; set layout, images or labels"
    )


def _tables(params: RegisterParams, layout: str, description: dict[str, Any]) -> tuple[Tables, list[Fault]]:
    """Channels and labels, the parameters' where given, else the source's; and what is wrong with the labels."""
    channels = params.channel_names if params.channel_names is not None else description.get("channel_names", description.get("modality"))
    order = params.regions_class_order if params.regions_class_order is not None else description.get("regions_class_order")
    labels = params.label_names
    if labels is None:
        labels = decathlon_labels(description.get("labels")) if layout == "decathlon" else description.get("labels")
    for name, value, example in (
        ("channel_names", channels, '{"0": "T1"}; "CT" switches CT normalisation on'),
        ("label_names", labels, '{"background": 0, "tumour": 1}'),
    ):
        if value is None:
            raise ConfigError(f"register: {name} is missing and the source has no dataset.json that says it; set it, such as {example}")
    channel_names, problems = channel_table(channels)
    label_names, regions, more = label_table(labels, order)
    found = [(Code.LABELS_INVALID, text) for text in problems] + more
    if found and (params.label_names is not None or params.channel_names is not None or params.regions_class_order is not None):
        raise ConfigError("register: " + "; ".join(text for _, text in found))
    faults = [Fault(code=code, file="dataset.json", message=text) for code, text in found]
    if problems:
        raise data_error(faults, what="dataset.json")  # which file is which channel cannot be known
    return Tables(channel_names=channel_names, labels=label_names, regions_class_order=regions), faults


def _decathlon(params: RegisterParams, source: Source, description: dict[str, Any]) -> None:
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
            case = split_ending(PurePosixPath(image).name)[0]
            _add(source, case, [image], label if labelled else None, labelled=labelled)


def _nnunet(params: RegisterParams, source: Source, description: dict[str, Any]) -> None:
    ending = description.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise ConfigError(f"source={params.source!r}: file_ending={ending!r} is not supported; convert the images to .nii.gz")
    listed = description.get("dataset")
    if listed is not None:
        _listed(source, listed)
    else:
        _split_folder(source, "imagesTr", "labelsTr", ending, labelled=True)
    has_labels = (source.root / "labelsTs").is_dir()
    if (source.root / "imagesTs").is_dir():
        _split_folder(source, "imagesTs", "labelsTs" if has_labels else None, ending, labelled=False)


def _listed(source: Source, listed: Any) -> None:
    """``dataset.json["dataset"]``: case to its images and label, wherever they lie below the source."""
    if not isinstance(listed, dict):
        source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message="'dataset' must map cases to files"))
        return
    for case, entry in listed.items():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images) or not isinstance(label, str):
            message = "'dataset' must name 'images' (a list) and a 'label' for the case"
            source.faults.append(Fault(code=Code.DESCRIPTION_INVALID, case=case, file="dataset.json", message=message))
            continue
        _add(source, str(case), images, label)


def _add(source: Source, case: str, images: list[str], label: str | None, *, labelled: bool = True) -> None:
    try:
        paths = tuple(below(source.root, image, case=case) for image in images)
        label_path = below(source.root, label, case=case) if label is not None else None
    except Refused as refused:
        source.faults.append(refused.fault)
        return
    source.add(SourceCase(case=case, images=paths, label=label_path, labelled=labelled))


def _split_folder(source: Source, images: str, labels: str | None, ending: str, *, labelled: bool) -> None:
    """A pair of nnU-Net folders: ``<case>_0000<ending>`` and ``<case><ending>``."""
    pattern = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})" + re.escape(ending), re.DOTALL)
    found = _channels(source, images, lambda name: pattern.fullmatch(name), mend=f"expected <case>_0000{ending}")
    label_names = set(_list(source, labels)) if labels else set()
    for case, files in found.items():
        name = f"{case}{ending}"
        label = source.root / str(labels) / name if name in label_names else None
        label_names.discard(name)
        paths = _in_order(source, case, files)
        source.add(
            SourceCase(case=case, images=paths, label=label, labelled=labelled or label is not None, holdout=not labelled and bool(label))
        )
    _without_image(source, labels, label_names)


def _folders(params: RegisterParams, source: Source, description: dict[str, Any]) -> None:
    for name in ("images", "labels"):
        try:
            folder = below(source.root, getattr(params, name))
        except Refused as refused:
            raise ConfigError(f"register: {name}={getattr(params, name)!r}: {refused.fault.message}") from refused
        if not folder.is_dir():
            raise ConfigError(f"register: {name}={getattr(params, name)!r}: no such folder in {params.source}")
    if (source.root / params.images).samefile(source.root / params.labels):
        raise ConfigError(f"register: images and labels are both {params.images!r}; put them into two folders")
    pattern = re.compile(params.case_pattern, re.DOTALL)
    mend = f"the file name does not match case_pattern {params.case_pattern!r}"
    found = _channels(source, params.images, pattern.fullmatch, mend=mend)
    labels: dict[str, str] = {}
    strays: set[str] = set()
    for name in _list(source, params.labels):
        stem, ending = split_ending(name)
        match = pattern.fullmatch(name)
        case = stem if stem in found else match["case"] if match else stem
        if not ending or case not in found:
            strays.add(name)
        elif case in labels:
            message = f"two label files for one case: {labels[case]!r} and {name!r}; keep one"
            source.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case, file=f"{params.labels}/{name}", message=message))
        else:
            labels[case] = name
    for case, files in found.items():
        label = source.root / params.labels / labels[case] if case in labels else None
        source.add(SourceCase(case=case, images=_in_order(source, case, files), label=label))
    _without_image(source, params.labels, strays)


def _list(source: Source, folder: str) -> list[str]:
    path = source.root / folder
    if not path.is_dir():
        source.faults.append(Fault(code=Code.IMAGE_MISSING, file=folder, message="the folder is missing"))
        return []
    try:
        check_links(source.root, path)
    except Refused as refused:
        source.faults.append(refused.fault)
        return []
    return without_sidecars(listing(source.root, path, source.faults))


def _channels(source: Source, folder: str, match: Callable[[str], re.Match[str] | None], *, mend: str) -> dict[str, dict[int, Path]]:
    """Image files of a folder by case and channel."""
    found: dict[str, dict[int, Path]] = {}
    by_name = {name: int(number) for number, name in source.tables.channel_names.items()}
    for name in _list(source, folder):
        groups = matched.groupdict() if (matched := match(name)) else {}
        case, text = groups.get("case"), groups.get("channel")
        channel = 0 if text is None else int(text) if text.isdecimal() else by_name.get(text)
        if not case or channel is None or not split_ending(name)[1]:
            reason = mend if channel is not None else f"channel {text!r} is not one of channel_names {list(by_name)}"
            if source.layout == "nnunet" and not mend.endswith(ending := split_ending(name)[1]):
                stem = re.sub(r"_\d{4}$", "", split_ending(name)[0])
                message = f"ends in {ending}, {mend}; convert the file or move it away"
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


def _in_order(source: Source, case: str, files: dict[int, Path]) -> tuple[Path, ...]:
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


def _sibling(source: Source, files: dict[int, Path], channel: int) -> str:
    """What a missing channel's file would be called, to judge by a file that is there."""
    there, path = next(iter(files.items()))
    place = path.name.rfind(f"_{there:04d}")
    name = path.name if place < 0 else f"{path.name[:place]}_{channel:04d}{path.name[place + 5 :]}"
    return source.relative(path.with_name(name))


def _without_image(source: Source, folder: str | None, names: set[str]) -> None:
    for name in sorted(names):
        message = "no image belongs to this label file; add the image or move the label away"
        case = split_ending(name)[0]
        source.faults.append(Fault(code=Code.LABEL_WITHOUT_IMAGE, case=case, file=f"{folder}/{name}", message=message))


_LAYOUTS: dict[str, Callable[[RegisterParams, Source, dict[str, Any]], None]] = {
    "decathlon": _decathlon,
    "nnunet": _nnunet,
    "folders": _folders,
}
