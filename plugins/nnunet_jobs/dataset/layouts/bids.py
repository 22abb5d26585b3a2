"""Reads BIDS: raw images below ``sub-*/[ses-*/]``, labels below ``derivatives/<pipeline>/``, channels by suffix and entities.

A channel's name, such as ``T1w`` or ``ce-gadolinium_T1w``, is the rule that finds its file: the last part is the suffix, the others are
entities that the file name must have. A case is a subject, session and run; the subject is the patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.layouts.base import Description, Layout, Source, SourceCase, in_order
from nnunet_jobs.dataset.layouts.bids_names import CASE, Named, Rule, files, subfolders
from nnunet_jobs.dataset.layouts.table import Table, read_table
from nnunet_jobs.dataset.names import UnusableName, below, check_links, split_ending
from nnunet_jobs.faults.codes import Code, data_error

_DERIVATIVES = "derivatives"
_ANY = "labels"  # the field's default: look for the one pipeline that has labels


# --- labels ---------------------------------------------------------------------------------------------------------
def _pipelines(params: RegisterParams, root: Path, faults: list[Fault]) -> list[Path]:
    """Return folders that may hold labels: the one that the field ``labels`` names, else every pipeline below ``derivatives``."""
    if params.labels != _ANY:
        try:
            folder = below(root, params.labels)
        except UnusableName as refused:
            raise ConfigError(where="register:", field="labels", value=params.labels, problem=refused.fault.message) from refused
        if not folder.is_dir():
            raise ConfigError(where="register:", field="labels", value=params.labels, problem=f"no such folder in {params.source}")
        return [folder]
    top = root / _DERIVATIVES
    return [*([top] if any(subfolders(root, top, faults, "sub-")) else []), *subfolders(root, top, faults)]


def _tiers(params: RegisterParams, named_files: Sequence[Named]) -> list[Named]:
    """Return the label files: what ``bids_label`` says, else segmentations, else masks, else files with the entity ``label``."""
    if params.bids_label is not None:
        rule = Rule.of(params.bids_label)
        matching = [named for named in named_files if rule.holds(named)]
        return [named for named in matching if rule.just(named)] or matching
    for suffix in ("dseg", "mask"):
        found = [named for named in named_files if named.suffix == suffix]
        if found:
            return found
    return [named for named in named_files if "label" in named.entities]


def _labels(params: RegisterParams, root: Path, faults: list[Fault]) -> tuple[Path | None, list[Named]]:
    """Return the pipeline that has the labels, and its label files.

    Raises:
        ConfigError: Several pipelines have labels, or none has.
    """
    found = {}
    for folder in _pipelines(params, root, faults):
        labels = _tiers(params, list(files(root, folder, faults)))
        if labels:
            found[folder] = labels
    if len(found) > 1:
        names = ", ".join(repr(str(folder.relative_to(root))) for folder in found)
        raise ConfigError(
            where="register:", field="labels", problem=f"several pipelines have label files ({names})", fix="set labels to one of them"
        )
    if not found:
        what = f"bids_label={params.bids_label!r}" if params.bids_label else "the suffix dseg or mask, or the entity label"
        where = params.labels if params.labels != _ANY else f"{_DERIVATIVES}/<pipeline>"
        if faults:
            return None, []
        raise ConfigError(
            field="source", value=params.source, problem=f"no label file with {what} below {where}/sub-*/", fix="set labels or bids_label"
        )
    return next(iter(found.items()))


# --- tables ---------------------------------------------------------------------------------------------------------
def _describe(params: RegisterParams, root: Path, description: Description) -> Description:
    """Describe channels where there is only one kind of image; take labels from ``dseg.tsv``, or from one mask's own name."""
    described = dict(description)
    if params.channel_names is None:
        described.setdefault("channel_names", _only_suffix(params, root))
    if params.label_names is None and "labels" not in described:
        described["labels"] = _label_names(params, root)
    return described


def _only_suffix(params: RegisterParams, root: Path) -> dict[str, str]:
    seen = Counter(named.suffix for named in files(root, root, []))
    if len(seen) == 1:
        return {"0": next(iter(seen))}
    shown = ", ".join(f"{suffix} ({count} files)" for suffix, count in seen.most_common(10)) or "none"
    raise ConfigError(
        where="register:",
        field="channel_names",
        problem="is missing",
        fix="name the suffix of each channel's images, with entities where it takes them, such as "
        f'{{"0": "T1w", "1": "ce-gadolinium_T1w"}}. Suffixes there: {shown}',
    )


def _label_names(params: RegisterParams, root: Path) -> dict[str, Any] | None:
    faults: list[Fault] = []
    pipeline, labels = _labels(params, root, faults)
    if pipeline is None:
        raise data_error(faults, what="label files")
    tables = [path for folder in (pipeline, root) for path in sorted(folder.glob("*dseg.tsv")) if not path.name.startswith(".")]
    beside = [path for named in labels if (path := named.path.with_name(split_ending(named.path.name)[0] + ".tsv")).exists()]
    read = {}
    for path in tables[:1] or beside:
        read[path] = _read_lookup(root, path)
    different = {str(sorted(names.items(), key=lambda item: item[1])): path for path, names in read.items()}
    if len(different) > 1:
        one, other = (str(path.relative_to(root)) for path in list(different.values())[:2])
        message = f"names other labels than {one}; make them agree, or set label_names"
        raise data_error([Fault(code=Code.LABELS_INVALID, file=other, message=message)], what="label tables")
    if read:
        return next(iter(read.values()))
    if all(named.suffix == "mask" for named in labels):  # a mask is 0 and 1 by BIDS' definition
        names = {named.entities.get("label", "mask") for named in labels}
        return {"background": 0, names.pop(): 1} if len(names) == 1 else None
    return None


def _read_lookup(root: Path, path: Path) -> dict[str, int]:
    """Read BIDS' lookup table with the columns ``index`` and ``name``."""
    name = str(path.relative_to(root))
    table = Table(name=name)
    try:
        check_links(root, path)
        table = read_table(path, name, delimiters="\t")
    except UnusableName as refused:
        table.faults.append(refused.fault)
    if not table.faults and not {"index", "name"} <= set(table.columns):
        table.fault("needs the columns 'index' and 'name', separated by tabulators", line=1, code=Code.LABELS_INVALID)
    names = {"background": 0}
    for line, row in table.rows if not table.faults else ():
        if not (row["index"].isascii() and row["index"].isdigit()):
            table.fault(f"index={row['index']!r} must be an integer of 0 or more", line=line, code=Code.LABELS_INVALID)
        elif int(row["index"]) == 0:
            continue
        elif row["name"] in names or int(row["index"]) in names.values():
            table.fault(f"{row['index']} {row['name']!r} is there twice", line=line, code=Code.LABELS_INVALID)
        else:
            names[row["name"]] = int(row["index"])
    if table.faults:
        raise data_error(table.faults, what="label table")
    return names


# --- cases ----------------------------------------------------------------------------------------------------------
def _recognise(params: RegisterParams, root: Path, description: Description) -> bool:
    has_subjects = any(subfolders(root, root, [], "sub-"))
    return has_subjects and ((root / "dataset_description.json").is_file() or (root / _DERIVATIVES).is_dir())


def _read(params: RegisterParams, source: Source, description: Description) -> None:
    rules = {int(number): Rule.of(name) for number, name in source.tables.channel_names.items()}
    seen: Counter[str] = Counter()
    candidates: dict[str, dict[int, list[Named]]] = {}
    entities: dict[str, Mapping[str, str]] = {}
    for named in files(source.root, source.root, source.faults):
        seen[named.suffix] += 1
        for number, rule in rules.items():
            if rule.holds(named):
                pinned = {key: value for key, value in named.entities.items() if key not in rule.entities or key == "sub"}
                case = Named(path=named.path, entities=pinned, suffix=named.suffix).case
                candidates.setdefault(case, {}).setdefault(number, []).append(named)
                entities[case] = {key: pinned[key] for key in CASE if key in pinned}
    if not candidates and not source.faults:
        shown = ", ".join(f"{suffix} ({count} files)" for suffix, count in seen.most_common(10)) or "none"
        wanted = ", ".join(source.tables.channel_names.values())
        message = f"no image below sub-*/ is a {wanted}; suffixes there: {shown}; correct channel_names"
        source.faults.append(Fault(code=Code.NO_CASES, message=message))
    labels = _by_case(source, _labels(params, source.root, source.faults)[1], entities)
    for case, by_channel in candidates.items():
        chosen = {number: path for number, found in by_channel.items() if (path := _one(source, case, rules[number], found))}
        if len(chosen) < len(by_channel):
            continue
        label = labels.get(case)
        source.add(
            SourceCase(
                case=case,
                images=in_order(source, case, chosen),
                label=label,
                labelled=label is not None,
                group=f"sub-{entities[case]['sub']}",
            )
        )


def _one(source: Source, case: str, rule: Rule, found: list[Named]) -> Path | None:
    """Return the file of a channel, or add a fault. A file that the rule names exactly precedes those with further entities."""
    best = [named for named in found if rule.just(named)] or found
    if len(best) == 1:
        return best[0].path
    names = ", ".join(sorted(named.path.name for named in best)[:4])
    message = f"{len(best)} files for one channel ({names}); name the entities in channel_names, such as 'acq-highres_{rule.suffix}'"
    source.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case, message=message))
    return None


def _by_case(source: Source, labels: Sequence[Named], cases: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Return the label file of each case. A label that names no run belongs to the only run."""
    found: dict[str, list[Path]] = {}
    by_subject: dict[str, list[str]] = {}
    for case, entities in cases.items():
        by_subject.setdefault(entities["sub"], []).append(case)
    for named in labels:
        fitting = [
            case
            for case in by_subject.get(named.entities["sub"], ())
            if all(named.entities[key] == cases[case][key] for key in CASE if key in named.entities and key in cases[case])
        ]
        name = source.relative(named.path)
        if len(fitting) == 1:
            found.setdefault(fitting[0], []).append(named.path)
        elif fitting:
            message = f"could belong to {', '.join(sorted(fitting)[:4])}; name the run or session in the file's name"
            source.faults.append(Fault(code=Code.NAME_UNMATCHED, file=name, message=message))
        else:
            message = "no image belongs to this label file; add the image or move the label away"
            source.faults.append(Fault(code=Code.LABEL_WITHOUT_IMAGE, file=name, message=message))
    for case, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(sorted(path.name for path in paths)[:4])
            message = f"{len(paths)} label files ({names}); set bids_label to the one that is meant, such as 'label-lesion_mask'"
            source.faults.append(Fault(code=Code.CASE_DUPLICATE, case=case, message=message))
    return {case: paths[0] for case, paths in found.items()}


_EXPECTS = "folders sub-* beside dataset_description.json or derivatives/<pipeline>/sub-*/ with *_dseg or *_mask files (BIDS)"
LAYOUT = Layout(
    name="bids", expects=_EXPECTS, recognise=_recognise, describe=_describe, read=_read, splits_4d=False, described_by="dseg.tsv"
)
