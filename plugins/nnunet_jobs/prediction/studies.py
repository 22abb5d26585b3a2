"""Cases from a folder of DICOM studies: series chosen by rule and converted under guard, segmentations written back as DICOM SEG."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, DataError, FailureClass, Fault, classify
from nnunet_jobs.contract.files import content_hash, sha256_file
from nnunet_jobs.contract.segment_codes import parse_segment_codes
from nnunet_jobs.contract.series_rules import SeriesRule, channel_rules
from nnunet_jobs.contract.workspace import Workspace
from nnunet_jobs.dataset.changes import parallel, pulse
from nnunet_jobs.dicom import convert
from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of
from nnunet_jobs.dicom.guard import Broken, Workers
from nnunet_jobs.dicom.header import is_dicom
from nnunet_jobs.dicom.identity import Identity, Person
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.export import label_values
from nnunet_jobs.prediction.model import SelectedModel

log = logging.getLogger("nnunet_jobs")

SEG_VERSION = 1
"""Of what a DICOM SEG holds; part of what decides whether one is up to date."""
_CONVERT_S = 1800.0
_SAME_PLACE = 0.1  # voxels that the corners of two channels' grids may lie apart
_LOOKED_AT = 200  # files of a folder that decide whether it holds DICOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One case's channels, as series with their grids, in the model's order."""

    case: str
    channels: tuple[Series, ...]
    grids: tuple[Grid, ...]

    def content(self) -> list[str]:
        """What the converted images depend on: hashes of the files in their order, and the converter."""
        found = [f"dicom {convert.VERSION}"]
        for series, grid in zip(self.channels, self.grids, strict=True):
            by_uid = {instance.sop_uid: instance.sha256 for instance in series.instances}
            found += [by_uid[uid] for uid in grid.sop_uids] + [",".join(map(str, grid.frames))]
        return found


@dataclass(slots=True, kw_only=True)
class Studies:
    """What a folder of DICOM studies holds for a model.

    Attributes:
        cases: sorted by id, images named as they will be converted; what cannot be predicted has its reason.
        by_case: the usable ones.
    """

    cases: list[Case] = field(default_factory=list)
    by_case: dict[str, Study] = field(default_factory=dict)

    def convert(self, cases: Sequence[Case], context: StepContext) -> list[Case]:
        """Write the NIfTI files of these cases; those that cannot be converted come back with their reason."""
        with Workers(max(1, context.cpus)) as workers:

            def one(name: str) -> Case:
                case = by_name[name]
                return case if case.problem else _converted(case, self.by_case[name], workers, context)

            by_name = {case.case: case for case in cases}
            return list(parallel(context, "convert", one, sorted(by_name)))


def holds_dicom(folder: Path) -> bool:
    """Whether the first files below a folder have the mark of DICOM files."""
    looked = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            looked += 1
            try:
                if is_dicom(Path(place) / name):
                    return True
            except OSError:  # a link, a pipe, not ours to read: no DICOM file
                pass
            if looked >= _LOOKED_AT:
                return False
    return False


def find_studies(folder: Path, *, rules: Mapping[str, SeriesRule], dataset: str, images: Path, context: StepContext) -> Studies:
    """Scan a folder and choose each channel's series in each study.

    Args:
        folder: resolved. rules: channel name to rule, in the model's order. dataset: whose predictions they are, for the mapping.
        images: folder that the converted images will be in.

    Raises:
        DataError: not one study is there. ConfigError: the site's key is not as it must be.
    """
    keywords = sorted({"ImageType", *(keyword for rule in rules.values() for keyword in rule.tags)})
    found = scan(folder, beat=pulse(context), threads=max(1, context.cpus), keywords=keywords)
    for fault in found.faults:
        log.warning("%s", fault)
    by_study: dict[str, list[Series]] = defaultdict(list)
    for series in found.series:
        by_study[series.study_uid].append(series)
    identity = Identity(context.workspace.private)
    studies, people = Studies(), []
    for uid, series_of_study in sorted(by_study.items()):
        for extra, chosen in _choices(series_of_study, rules):
            case = identity.case(uid, extra)
            studies.cases.append(_case(case, chosen, studies, images))
            if not isinstance(chosen, str):
                first = chosen[0]
                group = identity.group(first.patient, uid)
                names = tuple(series.series_uid for series in chosen)
                people.append(Person(case=case, group=group, patient=first.patient, study=uid, series=names))
    if not studies.cases:
        faults = [fault for fault in found.faults if fault.severity == "error"]
        raise DataError("cases: no study of this folder has a series that the rules of 'series' choose", faults=faults)
    identity.remember(f"{dataset}.predicted", people)
    studies.cases.sort(key=lambda case: case.case)
    return studies


def _choices(series: Sequence[Series], rules: Mapping[str, SeriesRule]) -> list[tuple[str, tuple[Series, ...] | str]]:
    """Cases of one study: what tells it apart (empty for one case a study), and its series, or why there are none."""
    images = [item for item in series if item.modality not in ("SEG", "RTSTRUCT")]
    matching = {channel: [item for item in images if rule.matches(item)] for channel, rule in rules.items()}
    [*channels] = matching
    if len(rules) == 1 and rules[channels[0]].each:
        return [(item.series_uid, (item,)) for item in matching[channels[0]]]
    if not any(matching.values()):
        return []  # another kind of study
    problems = [
        f"{len(found) or 'no'} series match channel {channel!r}; " + ("narrow its rule in 'series'" if found else "it was not recorded")
        for channel, found in matching.items()
        if len(found) != 1
    ]
    return [("", "; ".join(problems) if problems else tuple(found[0] for found in matching.values()))]


def _case(case: str, chosen: tuple[Series, ...] | str, studies: Studies, images: Path) -> Case:
    if isinstance(chosen, str):
        return Case(case=case, images=(), problem=chosen)
    try:
        for series in chosen:
            refused = [fault for fault in convert.pixel_faults(series) if fault.severity == "error"]
            if refused:
                raise SeriesRefused(refused)
        grids = tuple(grid_of(series) for series in chosen)
    except SeriesRefused as error:
        return Case(case=case, images=(), problem=str(error))
    if any(not _same_place(grids[0], grid) for grid in grids[1:]):
        return Case(case=case, images=(), problem="its channels lie on different grids; resample them to one, or choose other series")
    studies.by_case[case] = Study(case=case, channels=chosen, grids=grids)
    return Case(case=case, images=tuple(images / f"{case}_{channel:04d}.nii.gz" for channel in range(len(chosen))))


def _same_place(first: Grid, other: Grid) -> bool:
    if first.shape != other.shape:
        return False
    corners = np.asarray([(*np.multiply(corner, np.subtract(first.shape, 1)), 1) for corner in np.ndindex(2, 2, 2)], dtype=np.float64)
    seen = corners @ other.affine.T @ np.linalg.inv(first.affine).T  # the other's corners in voxels of the first
    return bool(np.abs(seen - corners).max() <= _SAME_PLACE)


def _converted(case: Case, study: Study, workers: Workers, context: StepContext) -> Case:
    for series, grid, target in zip(study.channels, study.grids, case.images, strict=True):
        memory = convert.memory_mib(series, grid)
        try:
            request = convert.request(series, grid, target)
            answer = workers.call("convert", request, timeout_s=_CONVERT_S, memory_mib=memory, beat=pulse(context))
            problem = "; ".join(str(Fault(**fault)) for fault in answer["faults"])
        except Broken as broken:
            problem = f"its series cannot be converted: {broken}; export it again"
        except OSError as error:
            problem = f"its series cannot be read ({os.strerror(error.errno) if error.errno else 'unknown'})"
        if problem:
            return Case(case=case.case, images=(), problem=problem)
    return case


class SegWriter:
    """Writes each predicted case of a folder of studies as ``<case>.seg.dcm``, of mode 0600: it names the patient, for the archive.

    Args:
        codes: field ``segment_codes``. description: the model's ``dataset.json``.

    Raises:
        ConfigError: a code is of a label that the model does not have.
    """

    def __init__(self, model: SelectedModel, description: Mapping[str, Any], codes: Mapping[str, Any], studies: Studies) -> None:
        from nnunet_jobs.dicom.seg_writer import output_segments

        self._model, self._studies = model, studies
        self._segments = output_segments(label_values(description), parse_segment_codes(codes))
        self.key = content_hash([SEG_VERSION, dict(codes)], length=32)

    def add(self, record: Mapping[str, Any], case: str, output: Path) -> dict[str, Any]:
        """The case's record with its SEG written, or as failed with the reason. Reads the segmentation that is in ``output``."""
        import nibabel

        from nnunet_jobs.dicom.seg_writer import ENDING, write_seg

        study, target = self._studies.by_case[case], output / f"{case}{ENDING}"
        grid = study.grids[0]
        try:
            image = nibabel.load(output / record["file"])
            written = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
            if image.shape != grid.shape or not _same_place(grid, Grid(shape=grid.shape, affine=written, sop_uids=())):
                raise DataError("the segmentation does not lie on the voxels of its series")
            write_seg(
                np.asarray(image.dataobj),
                grid,
                study.channels[0],
                segments=self._segments,
                model=self._model.model,
                model_hash=self._model.hash,
                target=target,
            )
        except Exception as error:
            kind = classify(error)
            if kind not in (FailureClass.DATA, FailureClass.BUG):
                raise
            # a library's words may quote the header
            reason = str(error) if kind is FailureClass.DATA else f"could not be written ({type(error).__name__})"
            return {**record, "status": "failed", "reason": f"DICOM SEG: {reason}", "failure_class": str(kind)}
        files = {**record["files"], target.name: sha256_file(target)}
        return {**record, "files": files, "seg": target.name, "seg_key": self.key}


def series_rules(series: Mapping[str, Any] | None, channel_names: Mapping[str, str]) -> dict[str, SeriesRule]:
    """Rules of the model's channels, in its order.

    Raises:
        ConfigError: a channel has no rule, or a rule is malformed.
    """
    try:
        return channel_rules(series, channel_names)[1]
    except ValueError as error:
        raise ConfigError(f"series: {error}") from error


def registered_rules(workspace: Workspace, dataset: str) -> Mapping[str, Any] | None:
    """The rules of ``series`` that the dataset was registered with; None when it did not come from DICOM."""
    rules: Mapping[str, Any] | None = workspace.manifest(dataset).get("series")
    return rules
