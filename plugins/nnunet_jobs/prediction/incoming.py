"""Finds the cases to predict: every file of the source becomes a case, or is listed as not predicted with the reason."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import HELD_OUT
from nnunet_jobs.contract.steps.results import NotPredicted
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.names import ENDINGS, PICTURES, split_ending
from nnunet_jobs.dicom.mark import named_like
from nnunet_jobs.prediction.cases import Case, checked_case_id

_NUMBERED = r"(?P<case>.+)_(?P<channel>\d{4})"
_COUNTED = 1000  # files of a sub-folder that are looked at to count its images
_OTHER_IMAGES = (*ENDINGS, ".mhd", ".nhdr", ".mgz", ".mgh", ".hdr", ".img", ".jpg", ".jpeg")
_TIFFS = (".tif", ".tiff")


@dataclass(slots=True, kw_only=True)
class Incoming:
    """Holds what was found.

    Attributes:
        cases: Cases sorted by id, including those that cannot be predicted, with their reason.
        not_predicted: All other files and folders.
    """

    cases: list[Case] = field(default_factory=list)
    not_predicted: list[NotPredicted] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing was found."""
        return not self.cases and not self.not_predicted

    def leave_out(self, name: str, reason: str) -> None:
        """List a file or folder as not predicted."""
        self.not_predicted.append(NotPredicted(name=name if name.isprintable() else ascii(name), reason=reason))

    def refuse(self, case: str, name: str, reason: str) -> None:
        """Add a file that cannot be predicted as a case with its reason; list it by its file name if another case has the id."""
        known = printable(case)
        if any(item.case == known for item in self.cases):
            self.leave_out(name, reason)
        else:
            self.cases.append(Case(case=known, images=(), problem=reason))


def named_folder(cases: str | list[Any], *, workspace: Workspace) -> Path | None:
    """Return the resolved folder that PredictParams.cases names; None for a list and for the dataset's own cases.

    Raises:
        ConfigError: It is outside the allowed roots, or not a folder.
    """
    if isinstance(cases, list) or cases in HELD_OUT:
        return None
    folder = workspace.confine_input(cases, field="cases")
    if not folder.is_dir():
        raise ConfigError(
            field="cases", value=cases, problem="not a folder", fix="use holdout, imagesTs, an existing folder or a list of images"
        )
    return folder


def collect_cases(
    cases: str | list[Any] | Path, *, workspace: Workspace, dataset: str, file_ending: str, channels: int, case_pattern: str | None = None
) -> Incoming:
    """Find the cases that PredictParams.cases names.

    Args:
        cases: ``holdout``, ``imagesTs``, a folder of :func:`named_folder`, or a list of ``{"case", "images"}`` or
            single paths.
        channels: Images that a case must have.
        case_pattern: Case pattern of a folder's file names, with the group ``case`` and optionally ``channel``; nnU-Net's
            own naming if None.

    Raises:
        ConfigError: A malformed list entry, an id used twice, a dataset without hold-out cases.
    """
    if isinstance(cases, list):
        found = _from_list(cases, workspace=workspace, file_ending=file_ending)
    elif isinstance(cases, Path):
        found = _from_folder(cases, workspace=workspace, file_ending=file_ending, case_pattern=case_pattern)
    elif cases == "holdout":
        found = _from_holdout(workspace=workspace, dataset=dataset, file_ending=file_ending)
    elif cases == "imagesTs":
        root = workspace.raw_dataset(dataset)
        found = _from_folder(root / "imagesTs", workspace=None, file_ending=file_ending, labels=root / "labelsTs")
    else:
        raise ConfigError(field="cases", value=cases, problem="is no set of the dataset", fix="name holdout, imagesTs or a folder")
    repeated = [case for case, count in Counter(item.case for item in found.cases).items() if count > 1]
    if repeated:
        raise ConfigError(
            field="cases", problem=f"{', '.join(sorted(repeated)[:5])} named more than once", fix="each output needs an id of its own"
        )
    found.cases = sorted((_with_channels(item, channels) for item in found.cases), key=lambda item: item.case)
    found.not_predicted.sort(key=lambda item: item.name)
    return found


def printable(name: str) -> str:
    """Return a name that is safe as a file name and in a log."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".")[:120] or "unnamed"


# --- folders ----------------------------------------------------------------------------------------------------------
def _from_folder(
    folder: Path, *, workspace: Workspace | None, file_ending: str, case_pattern: str | None = None, labels: Path | None = None
) -> Incoming:
    """Collect every entry of a folder. ``workspace`` confines the files; it is None if the folder is the workspace's own."""
    found, grouped = Incoming(), dict[str, dict[int, Path]]()
    others: list[Path] = []
    pattern = re.compile(case_pattern or _NUMBERED + re.escape(file_ending), re.DOTALL)
    for path in _entries(folder, found, file_ending):
        matched = pattern.fullmatch(path.name) if path.name.endswith(file_ending) else None
        if matched is None:
            others.append(path)
            continue
        groups = matched.groupdict()
        case, channel = groups.get("case") or "", groups.get("channel") or "0"
        if not case or not channel.isdecimal():
            found.refuse(
                path.name.removesuffix(file_ending), path.name, f"case_pattern finds no case or no channel number in {path.name!r}"
            )
        elif int(channel) in grouped.setdefault(case, {}):
            found.leave_out(path.name, f"channel {int(channel)} of case {printable(case)} is there twice; keep one of the files")
        else:
            grouped[case][int(channel)] = path
    refused = {item.case for item in found.cases}
    for case, by_channel in grouped.items():
        if printable(case) in refused:  # such as one of two channels that is a broken link; other cases are not affected
            for path in by_channel.values():
                found.leave_out(path.name, f"belongs to case {printable(case)}, of which another file cannot be used")
            continue
        try:
            checked_case_id(case, field="case")
            if workspace is not None:
                by_channel = {channel: workspace.confine_input(path, field="cases") for channel, path in by_channel.items()}
        except ConfigError as error:
            found.refuse(case, next(iter(by_channel.values())).name, str(error))
            continue
        label = labels / f"{case}{file_ending}" if labels else None
        found.cases.append(_case(case, by_channel, label=label if label and label.is_file() else None))
    beside = {path.name for by_channel in grouped.values() for path in by_channel.values()} | {path.name for path in others}
    for path in others:
        _other_file(path, found, file_ending=file_ending, case_pattern=case_pattern, beside=beside)
    return found


def _entries(folder: Path, found: Incoming, file_ending: str) -> Iterator[Path]:
    """Yield the files of a folder, sorted; list its other entries as not predicted."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found.leave_out(path.name, _folder_reason(path, file_ending))
        elif path.name.startswith("."):
            found.leave_out(path.name, "is a hidden file")
        elif not path.exists():
            found.refuse(_stem(path.name), path.name, "is a broken link; copy the image to its place")
        elif not path.is_file():
            found.leave_out(path.name, "is not a regular file")
        else:
            yield path


def _folder_reason(folder: Path, file_ending: str) -> str:
    held = looked = 0
    for _, _, names in os.walk(folder):
        held += sum(name.endswith(file_ending) for name in names)
        looked += len(names)
        if looked >= _COUNTED:
            break
    if not held:
        return "is a folder; only the files of the folder itself are predicted"
    many = "or more " if looked >= _COUNTED else ""
    return (
        f"is a folder with {held} {many}{file_ending} files; only the files of the folder itself are predicted: name that folder in cases"
    )


def _other_file(path: Path, found: Incoming, *, file_ending: str, case_pattern: str | None, beside: set[str]) -> None:
    """Handle a file whose name does not match: an image becomes a case with a reason, any other file is only listed."""
    name = path.name
    if name.endswith(file_ending):
        stem = printable(name.removesuffix(file_ending))
        if case_pattern:
            reason = f"the file name does not match case_pattern={case_pattern!r}"
        else:
            reason = f"the name has no channel number; rename it to {stem}_0000{file_ending}, or set case_pattern"
        found.refuse(stem, name, reason)
    elif name in {re.sub(r"(_\d{4})?\.tiff?$", ".json", image) for image in beside if image.endswith(_TIFFS)}:
        return  # the spacing of a 3D TIFF, which nnU-Net's reader reads with the image
    elif name.lower().endswith(file_ending.lower()):
        found.refuse(_stem(name), name, f"the ending is in upper case; rename it to end in {file_ending}")
    elif named_like(name):
        found.leave_out(name, "is named like a DICOM file and does not begin like one; it is not read here")
    elif name.lower().endswith(_OTHER_IMAGES):
        found.refuse(_stem(name), name, f"the model reads {file_ending} files; convert it")
    else:
        found.leave_out(name, "is not an image that nnU-Net reads")


def _stem(name: str) -> str:
    """Return the case id of a file with any image ending."""
    stem = split_ending(name.lower())[0]
    return re.sub(r"_\d{4}$", "", name[: len(stem)] if len(stem) < len(name) else Path(name).stem)


# --- other origins ----------------------------------------------------------------------------------------------------
def _from_holdout(*, workspace: Workspace, dataset: str, file_ending: str) -> Incoming:
    root = workspace.raw_dataset(dataset)
    known: Mapping[str, Mapping[str, Any]] = workspace.manifest(dataset)["cases"]
    wanted = [case for case, entry in known.items() if entry.get("split") == "holdout"]
    if not wanted:
        raise ConfigError(
            field="cases",
            value="holdout",
            problem=f"{dataset} has no hold-out cases",
            fix="register it with holdout_fraction or holdout_cases",
        )
    grouped = _group(sorted((root / "imagesTs").glob(f"*{file_ending}")) if (root / "imagesTs").is_dir() else (), file_ending)
    found = Incoming()
    for case in wanted:
        label = root / "labelsTs" / f"{case}{file_ending}"
        found.cases.append(_case(case, grouped.get(case, {}), label=label if label.is_file() else None))
    return found


def _from_list(cases: list[Any], *, workspace: Workspace, file_ending: str) -> Incoming:
    found = Incoming()
    for index, item in enumerate(cases):
        if isinstance(item, str):
            item = {"images": [item]}
        images = item.get("images") if isinstance(item, dict) else None
        if (
            not isinstance(images, list)
            or not images
            or not all(isinstance(path, str) for path in images)
            or set(item) - {"case", "images"}
        ):
            raise ConfigError(field=f"cases[{index}]", value=item, problem='must be a path or {"case": id, "images": [one path a channel]}')
        name = Path(images[0]).name
        numbered = re.fullmatch(_NUMBERED, name.removesuffix(file_ending), re.DOTALL)
        case = checked_case_id(
            str(item.get("case", numbered["case"] if numbered else name.removesuffix(file_ending))), field=f"cases[{index}].case"
        )
        try:
            confined = tuple(workspace.confine_input(path, field=f"cases[{index}].images") for path in images)
        except ConfigError as error:
            found.cases.append(Case(case=case, images=(), problem=str(error)))
            continue
        wrong = [path.name for path in confined if not path.name.endswith(file_ending)]
        problem = f"{', '.join(wrong)}: the model reads {file_ending} files" if wrong else None
        found.cases.append(Case(case=case, images=confined, problem=problem))
    return found


def _with_channels(case: Case, channels: int) -> Case:
    unseen = [path for path in case.images[:1] if path.name.endswith(_TIFFS) and not re.search(r"_\d{4}\.tiff?$", path.name)]
    if case.problem is None and unseen and unseen[0].with_suffix(".json").exists():
        problem = f"nnU-Net would not find the spacing beside {unseen[0].name}; rename it to end in _0000{unseen[0].suffix}"
        return Case(case=case.case, images=case.images, label=case.label, problem=problem)
    if len(case.images) == 1 and case.images[0].name.endswith(PICTURES):
        return case  # one file may hold all channels as colours, which is checked when it is read
    if case.problem is None and len(case.images) != channels:
        problem = f"has {len(case.images)} images; the model needs {channels}, one a channel"
        return Case(case=case.case, images=case.images, label=case.label, problem=problem)
    return case


def _group(files: Iterable[Path], file_ending: str) -> dict[str, dict[int, Path]]:
    grouped: dict[str, dict[int, Path]] = {}
    for path in files:
        if named := re.fullmatch(_NUMBERED, path.name.removesuffix(file_ending), re.DOTALL):
            grouped.setdefault(named["case"], {})[int(named["channel"])] = path
    return grouped


def _case(case: str, by_channel: Mapping[int, Path], *, label: Path | None = None) -> Case:
    images = tuple(path for _, path in sorted(by_channel.items()))
    gaps = sorted(set(range(max(by_channel, default=-1) + 1)) - set(by_channel))
    problem = f"channel {', '.join(f'{gap:04d}' for gap in gaps)} is missing" if gaps else None
    return Case(case=case, images=images, label=label, problem=problem)
