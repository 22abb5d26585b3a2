"""Converts a tree of DICOM studies into a hidden folder of NIfTI files and a list of cases; unchanged series stay converted."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.steps.series_rules import SeriesRule, channel_rules
from nnunet_jobs.contract.storage.files import temporary_beside, write_json
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.dataset.changes import beat_or_stop, parallel
from nnunet_jobs.dataset.dicom_cases import DicomCase, cases_of, faults_of, keywords
from nnunet_jobs.dataset.layouts.dicom import CASES
from nnunet_jobs.dataset.names import ENDINGS
from nnunet_jobs.dataset.readers.volume import hash_file
from nnunet_jobs.dicom import convert, label_task
from nnunet_jobs.dicom.geometry import SeriesRefused, grid_of, same_place
from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.model import Grid, Series
from nnunet_jobs.dicom.series import scan
from nnunet_jobs.dicom.values import compare_units
from nnunet_jobs.dicom.workers import dicom_workers
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.sandbox.workers import Broken, Workers

log = logging.getLogger("nnunet_jobs")

_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Converted:
    """A converted case: its files relative to the folder, or none if faults forbid it or consent was withdrawn."""

    case: DicomCase
    withdrawn: bool = False
    images: tuple[str, ...] = ()
    label: str | None = None
    faults: tuple[Fault, ...] = ()


@contextlib.contextmanager
def converted(params: RegisterParams, root: Path, context: StepContext, *, dataset: str) -> Iterator[Path]:
    """Convert the new files of a DICOM tree and yield the folder that lists all cases; then remove what the tree no longer has.

    Files are named by a keyed hash of their sources, so a series is converted once. Nothing in the folder, its file names
    included, comes from a header; only :attr:`Workspace.private` says which patient is behind a case.

    Args:
        params: Parameters of the step.
        context: Context of the step.
        root: Resolved folder with the DICOM files.
        dataset: Full name.

    Raises:
        ConfigError: Rules or tables are wrong, or there is no DICOM file.
    """
    channels, rules = _rules(params)
    folder = Path(context.workspace.raw) / ".state" / "dicom" / dataset
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    done, faults = _Conversion(params=params, root=root, context=context, dataset=dataset, folder=folder, rules=rules).run()
    units, odd = compare_units({item.case.person.case: item.case.channels for item in done}, list(rules))
    faults += odd
    cases = {
        item.case.person.case: {"images": item.images, "label": item.label, "group": item.case.person.group}
        for item in done
        if item.images or item.withdrawn
    }
    plain = [_plain(fault) for fault in faults]
    write_json(folder / "dataset.json", {"channel_names": channels, CASES: cases, "faults": plain, "units": units})
    yield folder
    kept = {name for item in done for name in (*item.images, item.label)}
    for path in folder.iterdir():
        if path.name not in kept and path.name != "dataset.json":
            path.unlink()


def _rules(params: RegisterParams) -> tuple[dict[str, str], dict[str, SeriesRule]]:
    """Return the channel names by number, and the rules in that order."""
    if not params.channel_names and not params.series:
        raise ConfigError(where="register:", field="channel_names", problem="is missing", fix='DICOM needs it, such as {"0": "CT"}')
    if not params.label_names:
        raise ConfigError(
            where="register:", field="label_names", problem="is missing", fix='DICOM needs it, such as {"background": 0, "tumour": 1}'
        )
    try:
        return channel_rules(params.series, params.channel_names)
    except ValueError as error:
        raise ConfigError(where="register:", field="series", value=params.series, problem=str(error)) from error


def _plain(fault: Fault) -> dict[str, Any]:
    return {"code": str(fault.code), "severity": fault.severity, "message": fault.message, "case": fault.case, "file": fault.file}


class _Conversion:
    def __init__(
        self, *, params: RegisterParams, root: Path, context: StepContext, dataset: str, folder: Path, rules: Mapping[str, SeriesRule]
    ) -> None:
        self.params, self.root, self.context, self.dataset, self.folder, self.rules = params, root, context, dataset, folder, rules
        self.identity = Identity(context.workspace.private)
        self.beat = beat_or_stop(context)

    def run(self) -> tuple[list[_Converted], list[Fault]]:
        """Return every case, and all faults: first of files, then of cases."""
        threads = max(1, min(self.context.cpus, _THREADS))
        with dicom_workers(threads) as workers:
            found = scan(
                self.root,
                beat=self.beat,
                workers=workers,
                threads=threads,
                keywords=keywords(self.rules),
                done=lambda done, total: self.context.progress("scan", done, total) if done % 500 == 0 or done == total else None,
            )
            log.info(
                "%d DICOM series; left out: %d files that are not DICOM, %d DICOM objects that are neither images nor labels",
                len(found.series), found.other, found.ignored,
            )  # fmt: skip
            if not found.series and not found.faults:
                raise ConfigError(field="source", value=self.params.source, problem="holds no DICOM file with images")
            cases, withdrawn = self._consented(cases_of(found, self.rules, self.identity))
            self.identity.remember(self.dataset, [case.person for case in cases])
            done = parallel(self.context, "convert", lambda case: self._convert(case, workers), cases)
        faults = [*faults_of(found, self.identity), *(fault for item in done for fault in item.faults)]
        files = {**found.files, **_files_of_faults(done, [series for series in found.series if series.labels])}
        note = self.identity.note_files(self.dataset, files)
        if note is not None:
            log.warning("faults name files by number only; the paths are in %s", os.path.realpath(note))
        done += [_Converted(case=case, withdrawn=True) for case in withdrawn]
        return done, faults

    def _consented(self, cases: list[DicomCase]) -> tuple[list[DicomCase], list[DicomCase]]:
        """Return the cases to convert, and the withdrawn ones, for which neither image nor line of the mapping is made again."""
        stones = Tombstones(self.context.workspace, self.dataset)

        def gone(case: DicomCase) -> bool:
            return case.person.case in stones.cases or stones.group_key(case.person.group) in stones.groups

        return [case for case in cases if not gone(case)], [case for case in cases if gone(case)]

    # --- one case -----------------------------------------------------------------------------------------------
    def _convert(self, case: DicomCase, workers: Workers) -> _Converted:
        faults = list(case.faults)
        label = self._label_file(case.person.case)
        if label is None:
            faults += case.label_faults
        images: list[str] = []
        grids: list[Grid] = []
        for number, series in enumerate(case.channels):
            prefix = f"channel {number}: " if len(case.channels) > 1 else ""
            try:
                grid = grid_of(series)
                grids.append(grid)
                images.append(self._image(series, grid, workers, faults))
            except SeriesRefused as refused:
                faults += [replace(fault, message=prefix + fault.message) for fault in refused.faults]
        if label is None and case.objects and len(images) == len(case.channels):
            label = self._label(case, grids, workers, faults)
        faults = [replace(fault, case=case.person.case) for fault in faults]
        if any(fault.severity == "error" for fault in faults):
            return _Converted(case=case, faults=tuple(faults))
        return _Converted(case=case, images=tuple(images), label=label, faults=tuple(faults))

    def _image(self, series: Series, grid: Grid, workers: Workers, faults: list[Fault]) -> str:
        pixels = convert.pixel_faults(series)
        faults += [fault for fault in pixels if fault.severity == "warning"]
        errors = [fault for fault in pixels if fault.severity == "error"]
        if errors:
            raise SeriesRefused(errors)
        name = f"i{self._content(convert.VERSION, series)}.nii.gz"
        if not (self.folder / name).exists():
            convert.write_nifti(series, grid, self.folder / name, beat=self.beat, workers=workers)
        return name

    def _label(self, case: DicomCase, grids: Sequence[Grid], workers: Workers, faults: list[Fault]) -> str | None:
        objects = sorted(case.objects, key=lambda item: item[1])  # objects of one channel side by side, the first channel's grid first
        first = objects[0][1]
        off = sorted({channel for _, channel in objects if not same_place(grids[first], grids[channel])})
        if off:
            message = (
                f"its label objects describe channels {first} and {', '.join(map(str, off))}, which lie on different grids; "
                "segment on one channel, or resample the channels to one grid"
            )
            faults.append(Fault(code=Code.AFFINE_MISMATCH, message=message))
            return None
        described = [(item, case.channels[channel], grids[channel]) for item, channel in objects]
        rules = {"rules": self.params.label_rules, "names": self.params.label_names}
        series = [case.channels[channel] for channel in sorted({channel for _, channel in objects})]
        name = f"l{self._content(label_task.VERSION, *series, *(item for item, _ in objects), **rules)}.nii.gz"
        if (self.folder / name).exists():
            return name
        request = label_task.request(described, self.params.label_rules, self.params.label_names or {}, self.folder / name)
        timeout_s, memory_mib = label_task.limits(described)
        try:
            answer = workers.call("label", request, timeout_s=timeout_s, memory_mib=memory_mib, beat=self.beat)
        except Broken as broken:
            message = f"SEG and RTSTRUCT objects cannot be read: {broken}; export them again"
            faults.append(Fault(code=Code.DICOM_UNREADABLE, message=message))
            return None
        if answer["config"]:
            raise ConfigError.from_parts(answer["config"], answer["parts"]).told(where="register:")
        faults += [Fault(**fault) for fault in answer["faults"]]
        return name

    def _label_file(self, case: str) -> str | None:
        """Take the NIfTI label that lies beside the studies under the case's id, if any; it precedes every DICOM object."""
        for ending in ENDINGS:
            path = self.root / self.params.labels / f"{case}{ending}"
            if not os.path.realpath(path).startswith(f"{self.root}{os.sep}") or not path.is_file():
                continue
            name = f"n{self.identity.digest('label file', hash_file(path, self.beat))}{ending}"
            target = self.folder / name
            if not target.exists():
                temporary = temporary_beside(target)
                shutil.copyfile(path, temporary)
                os.replace(temporary, target)
            return name
        return None

    def _content(self, version: int, *series: Series, **more: Any) -> str:
        """Return a name for what is made of these files; it changes with any of them, with the converter and with the rules."""
        files = [[instance.sop_uid, instance.sha256] for item in series for instance in item.instances]
        return self.identity.digest("content", repr([version, files, more]))


def _files_of_faults(done: Sequence[_Converted], objects: Sequence[Series]) -> dict[int, Path]:
    """Map number to path for the files of all cases with a fault, since messages name files by number.

    Args:
        objects: All label objects; those that belong to no case are named too.
    """
    series = [one for item in done if item.faults for one in (*item.case.channels, *(one for one, _ in item.case.objects))]
    if any(item.case.label_faults for item in done):
        series += objects
    return {instance.number: instance.path for one in series for instance in one.instances}
