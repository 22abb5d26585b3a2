"""Lists the cases, channels, labels and description of a source in any known layout. Reads names, not images."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.files import open_regular
from nnunet_jobs.dataset.labels import Tables, channel_table, label_table
from nnunet_jobs.dataset.layouts import get_layout, layouts
from nnunet_jobs.dataset.layouts.base import Layout, Source, SourceCase
from nnunet_jobs.dataset.names import UnusableName, check_case_ids, check_links
from nnunet_jobs.dataset.own_splits import read_own_splits
from nnunet_jobs.dataset.readers.formats import nnunet_reader
from nnunet_jobs.dataset.renaming import CaseNames
from nnunet_jobs.dicom.mark import may_hold_dicom
from nnunet_jobs.faults.codes import Code, data_error

__all__ = ["Source", "SourceCase", "read_source"]

_EXTRAS = ("description", "reference", "licence", "license", "release", "citation", "overwrite_image_reader_writer")
_LOOKED_INTO = 50  # sub-folders, when the source itself has no known layout


def read_source(
    params: RegisterParams,
    root: Path,
    *,
    known: Collection[str] = (),
    names: CaseNames | None = None,
    withdrawn: Collection[str] = (),
) -> Source:
    """List a source.

    Args:
        params: Parameters of the step.
        root: Resolved folder of the source.
        known: Registered case ids that stay, whose names may clash.
        names: New ids of renamed cases so far, for ``rename``; no case is renamed if None.
        withdrawn: Ids of withdrawn cases.

    Raises:
        ConfigError: The folder does not exist, its layout is not recognised, or a field names something that does not exist.
        DataError: The description is unusable, or a folder cannot be read.
    """
    try:
        return _read_source(params, root, known=known, names=names, withdrawn=withdrawn)
    except OSError as error:
        where = os.path.relpath(error.filename, root) if isinstance(error.filename, str) else None
        fault = Fault(code=Code.UNREADABLE, file=where, message=f"cannot be read: {error.strerror or error}")
        raise data_error([fault], what=f"source={params.source!r}") from error


def _read_source(
    params: RegisterParams, root: Path, *, known: Collection[str], names: CaseNames | None, withdrawn: Collection[str]
) -> Source:
    if not os.path.isdir(root):
        raise ConfigError(field="source", value=params.source, problem="no such folder")
    description = _description(root)
    layout = get_layout(params.layout) if params.layout != "auto" else _detect(params, root, description)
    description = layout.describe(params, root, description)
    tables, faults = _tables(params, layout, description)
    source = Source(root=root, layout=layout.name, tables=tables, splits_4d=layout.splits_4d, faults=faults)
    source.extras = {key: description[key] for key in _EXTRAS if isinstance(description.get(key), str)}
    layout.read(params, source, description)
    if not source.cases and all(fault.severity == "warning" for fault in source.faults):
        source.faults.append(Fault(code=Code.NO_CASES, message=f"no cases found in {params.source} (layout {layout.name})"))
    if params.rename:
        (names or CaseNames()).apply(source, known)
    source.reader = nnunet_reader(source.file_ending(), source.extras.get("overwrite_image_reader_writer"))
    hostile = check_case_ids(source.cases, known=known)
    for fault in hostile:
        case = source.cases[fault.case or ""]
        source.faults.append(replace(fault, file=source.relative(case.images[0])) if case.images else fault)
    for fault in hostile:
        source.cases.pop(fault.case or "", None)  # reported already; such a name is not used further
    source.splits = read_own_splits(source, known={*known, *withdrawn, *(fault.case or "" for fault in hostile)})
    return source


def _description(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not os.path.lexists(path):
        return {}
    try:
        check_links(root, path)
        with open_regular(path) as file:
            data = json.loads(file.readall(), object_pairs_hook=_without_repetition)
        if not isinstance(data, dict):
            raise ValueError("it is not a JSON object")
    except UnusableName as refused:
        raise data_error([refused.fault], what="dataset.json") from refused
    except (ValueError, OSError, RecursionError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        fault = Fault(code=Code.DESCRIPTION_INVALID, file="dataset.json", message=f"cannot be used: {reason}")
        raise data_error([fault], what="dataset.json") from error
    return data


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, and refuse keys that occur twice, of which JSON readers silently use the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"{key!r} is there twice, as {_brief(found[key])} and as {_brief(value)}; keep one")
        found[key] = value
    return found


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def recognised(params: RegisterParams, root: Path) -> bool:
    """Whether a folder has one of the layouts that ``auto`` looks for."""
    try:
        description = _description(root)
    except DataError:  # the source's reader reports a dataset.json that cannot be read
        return True
    return any(layout.recognise(params, root, description) for layout in layouts())


def _detect(params: RegisterParams, root: Path, description: dict[str, Any]) -> Layout:
    for layout in layouts():
        if layout.recognise(params, root, description):
            return layout
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    if may_hold_dicom(root):
        folders = sum(name.endswith("/") for name in names)
        shown = f"{folders} folders and {len(names) - folders} files, not named here since there are DICOM files (layout dicom reads them)"
        names = []
    lines = [f"  {layout.name}: {layout.expects}" for layout in layouts()]
    if (root / "dataset.json").is_file():
        shown += "; its dataset.json has " + (", ".join(map(repr, list(description)[:12])) or "no entries")
    inner = [name for name in names[:_LOOKED_INTO] if name.endswith("/") and _has_layout(params, root / name)]
    fix = "set layout, images and labels, or mapping"
    if inner:
        fix = f"did you mean {os.path.join(params.source, inner[0].rstrip('/'))!r}? Else " + fix
    problem = "\n".join([f"layout not recognised; the folder holds {shown or 'nothing'}. Expected one of", *lines, fix])
    raise ConfigError(field="source", value=params.source, problem=problem)


def _has_layout(params: RegisterParams, folder: Path) -> bool:
    """Whether the user may have meant this sub-folder."""
    if folder.is_symlink():
        return False
    try:
        description = _description(folder)
    except DataError:
        return False
    return any(layout.recognise(params, folder, description) for layout in layouts())


def _tables(params: RegisterParams, layout: Layout, description: dict[str, Any]) -> tuple[Tables, list[Fault]]:
    """Return channels and labels, from the parameters if given, else from the source, and the faults of the labels."""
    channels = params.channel_names if params.channel_names is not None else description.get("channel_names", description.get("modality"))
    order = params.regions_class_order if params.regions_class_order is not None else description.get("regions_class_order")
    labels = params.label_names if params.label_names is not None else description.get("labels")
    for name, value, example in (
        ("channel_names", channels, '{"0": "T1"}; "CT" switches CT normalisation on'),
        ("label_names", labels, '{"background": 0, "tumour": 1}'),
    ):
        if value is None:
            said_by = layout.described_by
            raise ConfigError(
                where="register:",
                field=name,
                problem=f"is missing and the source has no {said_by} that says it",
                fix=f"set it, such as {example}",
            )
    channel_names, channel_problems = channel_table(channels)
    label_names, regions, label_problems = label_table(labels, order)
    found = [(Code.LABELS_INVALID, text) for text in channel_problems] + label_problems
    own_labels = params.label_names is not None or params.regions_class_order is not None
    if (channel_problems and params.channel_names is not None) or (label_problems and own_labels):
        raise ConfigError("register: " + "; ".join(text for _, text in found))
    faults = [Fault(code=code, file=layout.described_by, message=text) for code, text in found]
    if channel_problems:
        raise data_error(faults, what=layout.described_by)  # the channel of each file cannot be known
    if any(code in (Code.LABELS_INVALID, Code.BACKGROUND_MISSING) for code, _ in label_problems):
        label_names = {}  # the fault is the table's, not that of each label image with other values
    return Tables(channel_names=channel_names, labels=label_names, regions_class_order=regions), faults
