"""Finds cases in a folder of DICOM studies: chooses series by rule, converts them in the sandbox, and writes DICOM SEG files."""

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
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, DataError, FailureClass, Fault
from nnunet_jobs.contract.steps.segment_codes import parse_segment_codes
from nnunet_jobs.contract.steps.series_rules import SeriesRule, channel_rules
from nnunet_jobs.contract.storage.files import content_hash, sha256_file
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.changes import beat_or_stop, parallel
from nnunet_jobs.dataset.dicom_cases import DicomCase, cases_of, keywords
from nnunet_jobs.dicom import convert
from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of, same_place
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.seg_sources import seg_faults
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.dicom.values import unlike_units
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.export import label_values
from nnunet_jobs.prediction.incoming import Incoming
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.sandbox.workers import Broken, Workers

log = logging.getLogger("nnunet_jobs")

SEG_VERSION = 1
"""Version of a DICOM SEG's content; it is part of what decides whether one is up to date."""
_CONVERT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSeries:
    """Holds one case's channels, as series with their grids, in the model's order."""

    case: str
    channels: tuple[Series, ...]
    grids: tuple[Grid, ...]

    def content(self) -> list[str]:
        """Return what the converted images depend on: hashes of the files in their order, and the converter's version."""
        found = [f"dicom {convert.VERSION}"]
        for series, grid in zip(self.channels, self.grids, strict=True):
            by_uid = {instance.sop_uid: instance.sha256 for instance in series.instances}
            found += [by_uid[uid] for uid in grid.sop_uids] + [",".join(map(str, grid.frames))]
        return found


@dataclass(slots=True, kw_only=True)
class Studies:
    """Holds what a folder of DICOM studies contains for a model.

    Attributes:
        incoming: The cases, sorted by id, with the paths of the images to convert; a case that cannot be predicted has
            its reason. Files that are not predicted are named by numbers and pseudonyms, because file names in an
            archive's export contain names of people.
        by_case: The usable cases.
        as_seg: Whether a DICOM SEG of each is requested, so that its requirements are checked.
        channels: Channel names, in the model's order.
        units: Units of PET in the model's dataset, by channel.
        files: Maps number to path for the files that problems may name, for users who may see paths.
    """

    as_seg: bool = False
    channels: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)
    incoming: Incoming = field(default_factory=Incoming)
    by_case: dict[str, CaseSeries] = field(default_factory=dict)

    def add(self, found: DicomCase, errors: Sequence[Fault], images: Path) -> None:
        """Add a case of the scan, with its errors."""
        case, faults, grids = found.person.case, list(errors), []
        if found.channels and self.as_seg:
            faults += seg_faults(found.channels[0])
        faults += unlike_units(found.channels, self.units, self.channels)
        odd = [fault for fault in found.faults if fault.severity != "error"]
        for series in found.channels:
            of_pixels = convert.pixel_faults(series)
            faults += [fault for fault in of_pixels if fault.severity == "error"]
            odd += [fault for fault in of_pixels if fault.severity != "error"]
            try:
                grids.append(grid_of(series))
            except SeriesRefused as refused:
                faults += refused.faults
        if not faults and any(not same_place(grids[0], grid) for grid in grids[1:]):
            message = "its channels lie on different grids; resample them to one, or choose other series"
            faults.append(Fault(code=Code.AFFINE_MISMATCH, message=message))
        if faults:
            problem = "; ".join(f"{fault.code}: {fault.message}" for fault in faults)
            for series in found.channels:
                self.files |= {instance.number: instance.path for instance in series.instances}
            self.incoming.cases.append(Case(case=case, images=(), problem=problem))
            return
        self.by_case[case] = CaseSeries(case=case, channels=found.channels, grids=tuple(grids))
        names = (f"{case}_{channel:04d}.nii.gz" for channel in range(len(found.channels)))
        written = tuple(images / name for name in names)
        self.incoming.cases.append(Case(case=case, images=written, converted=True, warnings=tuple(odd)))

    def voxels(self, case: Case) -> int:
        """Return the voxels of a study's first channel; 0 for one that cannot be predicted."""
        study = self.by_case.get(case.case)
        return int(np.prod(study.grids[0].shape)) if study else 0

    def convert(self, cases: Sequence[Case], context: StepContext) -> list[Case]:
        """Write the NIfTI files of these cases; return those that cannot be converted with their reason."""
        with dicom_workers(max(1, context.cpus)) as workers:

            def one(name: str) -> Case:
                case = by_name[name]
                return case if case.problem else _converted(case, self.by_case[name], workers, context)

            by_name = {case.case: case for case in cases}
            return list(parallel(context, "convert", one, sorted(by_name)))

    def seg_writer(self, model: SelectedModel, description: Mapping[str, Any], codes: Mapping[str, Any]) -> SegWriter:
        """Return the writer of DICOM SEG files for these studies; see :class:`SegWriter`."""
        return SegWriter(model, description, codes, self)


def find_studies(
    folder: Path, *, rules: Mapping[str, SeriesRule], dataset: str, images: Path, context: StepContext, as_seg: bool = False
) -> Studies:
    """Scan a folder and choose each channel's series in each study.

    Args:
        folder: Resolved folder.
        rules: Maps channel name to rule, in the model's order.
        dataset: Dataset of the model, for the mapping.
        images: Folder for the converted images.
        as_seg: Whether a DICOM SEG of each study is requested.

    Raises:
        DataError: No study can be used.
        ConfigError: The site's key is damaged or open to others.
    """
    identity = Identity(context.workspace.private)
    found = scan(folder, beat=beat_or_stop(context), threads=max(1, context.cpus), keywords=keywords(rules))
    of_files: dict[str, list[Fault]] = defaultdict(list)  # by study: there may be a case of each of its series
    units = registered_units(context.workspace, dataset)
    studies, people = Studies(as_seg=as_seg, channels=tuple(rules), units=units, files=dict(found.files)), []
    for fault in found.faults:
        study = found.studies.get(fault.file or "")
        if fault.severity != "error":
            log.warning("%s", fault)
        elif study is None:
            studies.incoming.leave_out(fault.file or "a file", f"{fault.code}: {fault.message}")
        else:
            of_files[study].append(fault)
    for count, reason in (
        (found.other, "are not DICOM files, in a folder of DICOM studies; put images to predict into a separate folder"),
        (found.ignored, "are DICOM objects that hold neither images nor labels, such as reports"),
    ):
        if count:
            studies.incoming.leave_out(f"{count} files", reason)
    chosen: set[str] = set()
    for item in cases_of(found, rules, identity):
        chosen |= {series.series_uid for series in item.channels}
        errors = [*of_files[item.person.study], *(fault for fault in item.faults if fault.severity == "error")]
        missing = [str(fault.code) for fault in errors] == [Code.DICOM_SERIES_MISSING] * len(rules)
        if missing or not (errors or item.channels):
            # a study of another kind, or of labels alone, in a mixed folder
            studies.incoming.leave_out(f"study {item.person.case}", "has no series that the rules of 'series' choose")
            continue
        studies.add(item, errors, images)
        people.append(item.person)
    if count := sum(series.series_uid not in chosen for series in found.series):
        studies.incoming.leave_out(f"{count} series", "no rule of 'series' chooses them")
    if not studies.incoming.cases:
        faults = [fault for fault in found.faults if fault.severity == "error"]
        raise DataError("cases: no study of this folder has a series that the rules of 'series' choose", faults=faults)
    identity.remember(f"{dataset}.predicted", people)
    note = identity.note_files(f"{dataset}.predicted", studies.files)
    if note is not None:
        log.warning("reasons name files by number only; the paths are in %s", os.path.realpath(note))
    return studies


def _converted(case: Case, study: CaseSeries, workers: Workers, context: StepContext) -> Case:
    for series, grid, target in zip(study.channels, study.grids, case.images, strict=True):
        memory = convert.memory_mib(series, grid)
        try:
            request = convert.request(series, grid, target)
            answer = workers.call("convert", request, timeout_s=_CONVERT_S, memory_mib=memory, beat=beat_or_stop(context))
            problem = "; ".join(str(Fault(**fault)) for fault in answer["faults"])
        except Broken as broken:
            problem = f"its series cannot be converted: {broken}; export it again"
        except OSError as error:
            problem = f"its series cannot be read ({os.strerror(error.errno) if error.errno else 'unknown'})"
        if problem:
            return Case(case=case.case, images=(), problem=problem)
    return case


class SegWriter:
    """Writes each predicted case of a folder of studies as ``<case>.seg.dcm``, with mode 0600, since it names the patient.

    Args:
        codes: Field ``segment_codes``.
        description: The model's ``dataset.json``.

    Raises:
        ConfigError: A code is of a label that the model does not have.
    """

    def __init__(self, model: SelectedModel, description: Mapping[str, Any], codes: Mapping[str, Any], studies: Studies) -> None:
        from nnunet_jobs.dicom.seg_writer import output_segments

        self._model, self._studies = model, studies
        self._segments = output_segments(label_values(description), parse_segment_codes(codes))
        self.key = content_hash([SEG_VERSION, dict(codes)], length=32)

    def add(self, record: Mapping[str, Any], case: str, output: Path) -> dict[str, Any]:
        """Write a SEG of the segmentation in ``output``; return the case's record, as failed with the reason if that fails."""
        import nibabel

        from nnunet_jobs.dicom.seg_writer import ENDING, write_seg

        study, target = self._studies.by_case[case], output / f"{case}{ENDING}"
        grid = study.grids[0]
        try:
            image = nibabel.load(output / record["file"])
            written = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
            if image.shape != grid.shape or not same_place(grid, Grid(shape=grid.shape, affine=written, sop_uids=())):
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
            if kind is not FailureClass.DATA:  # a library's message may quote the header
                log.error("case %s: its DICOM SEG could not be written: %s", case, type(error).__name__)
            reason = str(error) if kind is FailureClass.DATA else "could not be written; see the job's log"
            return {**record, "status": "failed", "reason": f"DICOM SEG: {reason}", "failure_class": str(kind)}
        files = {**record["files"], target.name: sha256_file(target)}
        return {**record, "files": files, "seg": target.name, "seg_key": self.key}


def series_rules(series: Mapping[str, Any] | None, channel_names: Mapping[str, str]) -> dict[str, SeriesRule]:
    """Return the rules of the model's channels, in its order.

    Raises:
        ConfigError: A channel has no rule, or a rule is malformed.
    """
    try:
        return channel_rules(series, channel_names)[1]
    except ValueError as error:
        raise ConfigError(field="series", problem=str(error)) from error


def registered_rules(workspace: Workspace, dataset: str) -> Mapping[str, Any] | None:
    """Return the rules of ``series`` that the dataset was registered with; None if it is not from DICOM."""
    rules: Mapping[str, Any] | None = workspace.manifest(dataset).get("series")
    return rules


def registered_units(workspace: Workspace, dataset: str) -> Mapping[str, str]:
    """Return the Units of the dataset's PET by channel; empty if it is not from DICOM, or of a version that did not keep them."""
    if not (workspace.raw_dataset(dataset) / "manifest.json").exists():
        return {}
    units: Mapping[str, str] = workspace.manifest(dataset).get("units", {})
    return units
