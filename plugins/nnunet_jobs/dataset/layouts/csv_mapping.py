"""Reads a CSV table that names each case's images, label, patient and split, anywhere below the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, SourceCase
from nnunet_jobs.dataset.layouts.table import Table, read_table
from nnunet_jobs.dataset.names import UnusableName, below, split_ending
from nnunet_jobs.faults.codes import Code

_KNOWN = ("case", "image", "label", "group", "split")
_SPLITS = {"": None, "train": "train", "training": "train", "holdout": "holdout", "hold-out": "holdout", "test": "test"}


def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    return params.mapping is not None


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    name = params.mapping or ""
    try:
        path = below(source.root, name)
    except UnusableName as refused:
        raise ConfigError(where="register:", field="mapping", value=name, problem=refused.fault.message) from refused
    if not path.exists():
        raise ConfigError(where="register:", field="mapping", value=name, problem=f"no such file in {params.source}")
    table = read_table(path, name)
    columns = _channel_columns(table, source.tables.channel_names)
    if not columns:
        source.faults += table.faults
        return
    first_line: dict[str, int] = {}
    for line, row in table.rows:
        case = row["case"]
        if not case:
            table.fault("has no case id", line=line)
        elif case in first_line:
            message = f"the case is there already, in line {first_line[case]}; keep one of the two rows"
            table.fault(message, line=line, case=case, code=Code.CASE_DUPLICATE)
        else:
            first_line[case] = line
            _add_row(source, table, line, row, columns)
    _check_groups(source, table, first_line)
    source.faults += table.faults


def _channel_columns(table: Table, channel_names: Mapping[str, str]) -> list[str]:
    """Return each channel's column: ``image`` for a single file, else the channel's name or number. Empty if a column is missing."""
    if not table.columns:
        if not table.faults:
            table.fault("is empty; give it the columns case, image and label", line=1)
        return []
    before = len(table.faults)
    seen = f"; the columns are {', '.join(filter(None, table.columns)) or 'none'}"
    for column in ("case", "label"):
        if column not in table.columns:
            table.fault(f"has no column {column!r}{seen}", line=1)
    columns: list[str] = []
    for number, name in channel_names.items():
        names = [name.casefold(), number, f"{int(number):04d}"]
        found = [column for column in dict.fromkeys(names) if column in table.columns and column not in _KNOWN]
        if len(found) > 1:
            table.fault(f"has the columns {', '.join(map(repr, found))} for one channel; keep one", line=1)
        columns += found[:1]
    if not columns and "image" in table.columns:
        return ["image"] if len(table.faults) == before else []
    if len(columns) < len(channel_names):
        wanted = ", ".join(f"{name!r} (or {number!r})" for number, name in channel_names.items())
        table.fault(f"needs a column for each channel: {wanted}, or one column 'image' for files that hold all channels{seen}", line=1)
    return columns if len(table.faults) == before else []


def _add_row(source: Source, table: Table, line: int, row: Mapping[str, str], columns: Sequence[str]) -> None:
    case, label, split = row["case"], row["label"], row.get("split", "").casefold()
    before = len(table.faults)
    if split not in _SPLITS:
        table.fault(f"split={row['split']!r} must be train, holdout, test or empty", line=line, case=case)
    group = row.get("group") or None
    if group is not None and (not group.isprintable() or len(group) > 120):
        table.fault("the group must be at most 120 printable characters", line=line, case=case)
    empty = [column for column in columns if not row[column]]
    if empty:
        table.fault(f"names no image for {', '.join(map(repr, empty))}", line=line, case=case, code=Code.CHANNEL_MISSING)
    kind = _SPLITS.get(split)
    if kind in ("train", "holdout") and not label:
        table.fault(f"split={kind} needs a label", line=line, case=case, code=Code.LABEL_MISSING)
    paths = []
    for text in (*(row[column] for column in columns), *([label] if label else [])):
        if not text:
            continue
        try:
            paths.append(below(source.root, text, case=case))
        except UnusableName as refused:
            table.fault(refused.fault.message, line=line, case=case, code=Code.PATH_OUTSIDE)
            continue
        if not split_ending(text)[1]:
            table.fault(f"{text!r} has no ending of an image file that is read", line=line, case=case, code=Code.NAME_UNMATCHED)
    if len(table.faults) > before:
        return
    label_path = paths.pop() if label else None
    held_out = bool(label) and kind in ("holdout", "test")
    source.add(
        SourceCase(
            case=case, images=tuple(paths), label=label_path, labelled=bool(label), holdout=held_out, training=kind == "train", group=group
        )
    )


def _check_groups(source: Source, table: Table, lines: Mapping[str, int]) -> None:
    """Refuse patients on both sides of the split, which would make the hold-out useless."""
    sides: dict[str, SourceCase] = {}
    for case in source.cases.values():
        if case.group is None or not (case.training or case.holdout):
            continue
        other = sides.setdefault(case.group, case)
        if other.training != case.training:
            message = (
                f"the patient is on the other side of the split in line {lines[other.case]}; keep all of a patient's cases on one side"
            )
            table.fault(message, line=lines[case.case], case=case.case)


LAYOUT = Layout(
    name="csv",
    expects="the field mapping: a CSV file with the columns case, image (or one for each channel), label, and optionally group and split",
    recognise=_recognise,
    read=_read,
)
