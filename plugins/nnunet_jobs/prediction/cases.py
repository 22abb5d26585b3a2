"""Which cases to predict: names and files found, confined and checked, before any reader that forgives too much sees them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.workspace import Workspace
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dataset.names import ENDINGS, PICTURES
from nnunet_jobs.dataset.readers.formats import read_volume

_SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: its id, one image a channel, the label where it is known, and why it cannot be predicted at all."""

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    problem: str | None = None


def collect_cases(cases: str | list[Any], *, workspace: Workspace, dataset: str, file_ending: str, channels: int) -> list[Case]:
    """Find the cases that PredictParams.cases names, sorted by id.

    Args:
        cases: ``holdout``, ``imagesTs``, a folder in nnU-Net's naming, or a list of ``{"case", "images"}`` or single paths.
        channels: images a case must have.

    Raises:
        ConfigError: a folder outside the allowed roots, no case at all, a malformed list entry, an id used twice.
    """
    if isinstance(cases, list):
        found = _from_list(cases, workspace=workspace, file_ending=file_ending)
    elif cases in ("holdout", "imagesTs"):
        found = _from_dataset(cases, workspace=workspace, dataset=dataset, file_ending=file_ending)
    else:
        folder = workspace.confine_input(cases, field="cases")
        if not folder.is_dir():
            raise ConfigError(f"cases={cases!r}: not a folder; use holdout, imagesTs, an existing folder or a list of images")
        found = _from_folder(folder, workspace=workspace, file_ending=file_ending)
    if not found:
        raise ConfigError(f"cases={cases!r}: no image there; expected names such as case_0000{file_ending}")
    repeated = [case for case, count in Counter(item.case for item in found).items() if count > 1]
    if repeated:
        raise ConfigError(f"cases: {', '.join(sorted(repeated)[:5])} named more than once; each output needs an id of its own")
    return sorted((_with_channels(item, channels) for item in found), key=lambda item: item.case)


def checked_case_id(case: str, *, field: str) -> str:
    """The id, if it is safe as a file name.

    Raises:
        ConfigError: it is empty, too long, hidden, or has separators or control characters.
    """
    fits = 0 < len(case.encode()) <= 180 and not case.startswith(".") and not re.search(r"[/\\\0]", case)
    if not fits or any(unicodedata.category(character).startswith("C") for character in case):
        raise ConfigError(f"{field}={case!r}: a case id becomes a file name; use up to 180 visible characters without '/' and '\\'")
    return case


def check_images(
    case: Case,
    *,
    file_ending: str,
    channels: int | None = None,
    beat: Callable[[], None] = lambda: None,
    reserve: Callable[[int], None] = lambda _size: None,
) -> None:
    """Read every image to its last byte and refuse what nnU-Net's reader would take without a word.

    SimpleITK fills a truncated file with zeros, turns NaN into 0 and stops before a gzip checksum, so each file is first read
    as registration reads it. Endings that registration does not know are left to nnU-Net's own reader.

    Args:
        channels: that the files must hold together, where colours are channels.
        beat: called for each MiB; may raise to stop. reserve: called with the bytes that an image needs before it is read; may raise
            MemoryError.

    Raises:
        DataError: with all faults of the case.
    """
    if file_ending not in ENDINGS:
        return
    faults: list[Fault] = []
    volumes = [read_volume(path, case=case.case, name=path.name, label=False, beat=beat, reserve=reserve) for path in case.images]
    for path, volume in zip(case.images, volumes, strict=True):
        faults += [fault for fault in volume.faults if fault.severity == "error"]
        if len(volume.shape) > 3:
            message = f"has the shape {volume.shape}; give one file a channel"
            faults.append(Fault(code=Code.NOT_3D, message=message, case=case.case, file=path.name))
    held = sum(volume.channels for volume in volumes)
    if not faults and file_ending in PICTURES and channels is not None and held != channels:
        code = Code.CHANNEL_MISSING if held < channels else Code.CHANNEL_EXTRA
        message = f"its files hold {held} channels where the model needs {channels}"
        faults.append(Fault(code=code, message=message, case=case.case, file=case.images[-1].name))
    if not faults:
        first, *others = zip(case.images, volumes, strict=True)
        for path, volume in others:
            if volume.shape != first[1].shape:
                code, message = Code.SHAPE_MISMATCH, f"shape {volume.shape} differs from {first[1].shape} of {first[0].name}"
            elif not np.allclose(volume.spacing, first[1].spacing, rtol=_SPACING_TOLERANCE):
                code, message = Code.SPACING_MISMATCH, f"spacing {volume.spacing} mm differs from {first[1].spacing} of {first[0].name}"
            else:
                continue
            faults.append(Fault(code=code, message=message, case=case.case, file=path.name))
    if faults:
        raise DataError("; ".join(f"{fault.code} [{fault.file}]: {fault.message}" for fault in faults), faults=faults)


def _with_channels(case: Case, channels: int) -> Case:
    if len(case.images) == 1 and case.images[0].name.endswith(PICTURES):
        return case  # one file may hold all channels as colours; whether it does is seen when it is read
    if case.problem is None and len(case.images) != channels:
        problem = f"has {len(case.images)} images; the model needs {channels}, one a channel"
        return Case(case=case.case, images=case.images, label=case.label, problem=problem)
    return case


def _from_dataset(cases: str, *, workspace: Workspace, dataset: str, file_ending: str) -> list[Case]:
    root = workspace.raw_dataset(dataset)
    grouped = _group(sorted((root / "imagesTs").glob(f"*{file_ending}")) if (root / "imagesTs").is_dir() else (), file_ending)
    if cases == "holdout":
        known: Mapping[str, Mapping[str, Any]] = workspace.manifest(dataset)["cases"]
        wanted = [case for case, entry in known.items() if entry.get("split") == "holdout"]
        if not wanted:
            raise ConfigError(f"cases='holdout': {dataset} has no hold-out cases; register it with holdout_fraction or holdout_cases")
        grouped = {case: grouped.get(case, {}) for case in wanted}
    found = []
    for case, by_channel in grouped.items():
        label = root / "labelsTs" / f"{case}{file_ending}"
        found.append(_case(case, by_channel, label=label if label.is_file() else None))
    return found


def _from_folder(folder: Path, *, workspace: Workspace, file_ending: str) -> list[Case]:
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(file_ending) and not path.name.startswith(".")]
    found = []
    for case, by_channel in _group(files, file_ending).items():
        try:
            checked_case_id(case, field="case")
            confined = {channel: workspace.confine_input(path, field="cases") for channel, path in by_channel.items()}
        except ConfigError as error:
            found.append(Case(case=_printable(case), images=(), problem=str(error)))
            continue
        found.append(_case(case, confined))
    unnamed = [path for path in files if _split(path.name, file_ending) is None]
    for path in unnamed:
        name = _printable(path.name.removesuffix(file_ending))
        found.append(Case(case=name, images=(), problem=f"the name has no channel number; rename it to {name}_0000{file_ending}"))
    return found


def _from_list(cases: list[Any], *, workspace: Workspace, file_ending: str) -> list[Case]:
    found = []
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
            raise ConfigError(f'cases[{index}]={item!r}: must be a path or {{"case": id, "images": [one path a channel]}}')
        name = Path(images[0]).name
        named = _split(name, file_ending)
        default = named[0] if named else name.removesuffix(file_ending)
        case = checked_case_id(str(item.get("case", default)), field=f"cases[{index}].case")
        try:
            confined = tuple(workspace.confine_input(path, field=f"cases[{index}].images") for path in images)
        except ConfigError as error:
            found.append(Case(case=case, images=(), problem=str(error)))
            continue
        wrong = [path.name for path in confined if not path.name.endswith(file_ending)]
        problem = f"{', '.join(wrong)}: the model reads {file_ending} files" if wrong else None
        found.append(Case(case=case, images=confined, problem=problem))
    return found


def _split(name: str, file_ending: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.+)_(\d{4})", name.removesuffix(file_ending), re.DOTALL)
    return (match[1], int(match[2])) if match else None


def _group(files: Iterable[Path], file_ending: str) -> dict[str, dict[int, Path]]:
    grouped: dict[str, dict[int, Path]] = {}
    for path in files:
        named = _split(path.name, file_ending)
        if named:
            grouped.setdefault(named[0], {})[named[1]] = path
    return grouped


def _case(case: str, by_channel: Mapping[int, Path], *, label: Path | None = None) -> Case:
    images = tuple(path for _, path in sorted(by_channel.items()))
    gaps = sorted(set(range(max(by_channel, default=-1) + 1)) - set(by_channel))
    problem = f"channel {', '.join(f'{gap:04d}' for gap in gaps)} is missing" if gaps else None
    return Case(case=case, images=images, label=label, problem=problem)


def _printable(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".")[:120] or "unnamed"
