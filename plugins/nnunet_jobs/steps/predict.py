"""Predict: cases with a selected model, each isolated, each found again by content when the work is taken up later."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_jobs.context import StepContext, acting
from nnunet_jobs.contract.failure import Bug, ConfigError, DataError, FailureClass, Fault
from nnunet_jobs.contract.files import read_json
from nnunet_jobs.contract.params import PredictParams
from nnunet_jobs.dataset.changes import pulse
from nnunet_jobs.dataset.dicom_mark import holds_dicom
from nnunet_jobs.dataset.readers.volume import hash_file
from nnunet_jobs.prediction.cases import Case, collect_cases
from nnunet_jobs.prediction.export import fresh_folder
from nnunet_jobs.prediction.model import SelectedModel, resolve_model
from nnunet_jobs.prediction.parts import case_voxels
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.reading import ReadBeside
from nnunet_jobs.prediction.records import Records
from nnunet_jobs.prediction.settings import Settings, case_key, settings_key

if TYPE_CHECKING:
    from nnunet_jobs.prediction.studies import SegWriter, Studies

_SHOWN = 20


def run(params: PredictParams, context: StepContext) -> dict[str, Any]:
    """Predict this part's cases into ``params.output`` and merge ``predictions.json``.

    Returns:
        ``dataset``, ``model``, ``output``, ``predictions``, ``predicted``, ``already_done``, ``failed``, ``part``, ``parts``;
        of all parts so far ``flagged`` (cases that look wrong) and ``dice`` (``mean``, ``per_label``) where labels are known.

    Raises:
        ConfigError: no such dataset, model or folder, or a path outside the allowed roots.
        DataError: the model is damaged, or not one case of all parts could be predicted; every fault is in the report.
        Bug: not one case of this part could be predicted, and none was at fault.
    """
    workspace = context.workspace
    dataset = workspace.resolve_dataset(params.dataset)
    output = workspace.confine_output(params.output, field="output")
    model = resolve_model(workspace, dataset, params.model).with_folds(params.folds)
    os.environ.update(workspace.nnunet_environment(model=model.model))
    settings = Settings(
        mirroring=params.mirroring,
        step_size=params.step_size,
        postprocessing=params.postprocessing,
        probabilities=params.probabilities,
        fast=tuple(sorted(set(params.fast))),
    )
    description = read_json(model.members[0].folder / "dataset.json")
    output.mkdir(parents=True, exist_ok=True)
    records = Records(output)
    scratch = records.scratch(params.part, params.parts)
    studies = _studies(params, context, dataset, description, images=scratch.with_suffix(".converted"))
    found = studies.cases if studies else _cases(params, context, dataset, description)
    segs = studies.seg_writer(model, description, params.segment_codes) if studies and params.dicom_seg else None
    expected = Expected.of(model)
    with context.content_lock(records.part_lock(params.part, params.parts), what=f"part {params.part} of {output.name}"):
        cases = _share(found, params, context, records, studies)
        keys = {case.case: _key(case, model, settings, context, studies) for case in cases}
        work = _Work(
            model=model,
            settings=settings,
            context=context,
            records=records,
            keys=keys,
            expected=expected,
            pictures=records.pictures if params.contact_sheet else None,
            studies=studies,
            segs=segs,
        )
        done = {} if params.overwrite else work.done(cases, probabilities=params.probabilities)
        work.complete(done)
        work.predict([case for case in cases if case.case not in done], scratch=scratch)
        failed = work.failed
        predictions = records.merge(model, settings, expected, labels=description["labels"], contact_sheet=params.contact_sheet)
    summary = read_json(predictions)
    if cases and len(failed) == len(cases) and _nothing_predicted(failed, found, summary["cases"]):
        faults = [Fault(code="not-predicted", message=item["reason"], case=item["case"]) for item in failed]
        shown = "; ".join(f"{item['case']}: {item['reason']}" for item in failed[:_SHOWN])
        kind = Bug if _all_bugs(failed) else DataError
        raise kind(f"none of {len(cases)} cases could be predicted: {shown}", faults=faults)
    return {
        "dataset": dataset,
        "model": model.model,
        "output": str(output),
        "predictions": str(predictions),
        "predicted": len(cases) - len(done) - len({item["case"] for item in failed} - set(done)),
        "already_done": len(set(done) - {item["case"] for item in failed}),
        "failed": [{"case": item["case"], "reason": item["reason"]} for item in failed],
        "flagged": summary["flagged"],
        "dice": summary["dice"],
        "part": params.part,
        "parts": params.parts,
    }


def _cases(params: PredictParams, context: StepContext, dataset: str, description: Mapping[str, Any]) -> list[Case]:
    if params.dicom_seg:
        raise ConfigError(f"dicom_seg=True: cases={params.cases!r} are no DICOM studies; name a folder that holds their DICOM files")
    return collect_cases(
        params.cases,
        workspace=context.workspace,
        dataset=dataset,
        file_ending=description["file_ending"],
        channels=len(description["channel_names"]),
    )


def _studies(params: PredictParams, context: StepContext, dataset: str, description: Mapping[str, Any], *, images: Path) -> Studies | None:
    """The studies of a folder of DICOM files; None when ``cases`` is anything else."""
    if not isinstance(params.cases, str) or params.cases in ("holdout", "imagesTs"):
        return None
    folder = context.workspace.confine_input(params.cases, field="cases")
    if not folder.is_dir() or not holds_dicom(folder):
        return None
    if description["file_ending"] != ".nii.gz":
        raise ConfigError(f"cases={params.cases!r}: DICOM is converted to .nii.gz, the model reads {description['file_ending']}")
    try:
        from nnunet_jobs.prediction.studies import find_studies, registered_rules, series_rules
    except ImportError as error:
        raise ConfigError(
            f"cases={params.cases!r}: reading DICOM needs {(error.name or '').partition('.')[0]}; install airflow-provider-nnunet[dicom]"
        ) from error
    rules = series_rules(params.series or registered_rules(context.workspace, dataset), description["channel_names"])
    return find_studies(folder, rules=rules, dataset=dataset, images=images, context=context, as_seg=params.dicom_seg)


def _share(found: list[Case], params: PredictParams, context: StepContext, records: Records, studies: Studies | None) -> list[Case]:
    """The cases of this part. Parts of one DAG run agree on them, also with their own retries."""
    labels = acting(context)
    run = [labels[name] for name in ("dag_id", "run_id") if "run_id" in labels and name in labels]
    plans = records.part_plans(params.parts)
    size = studies.voxels if studies else case_voxels
    return plans.share(found, part=params.part, parts=params.parts, run=run, of=params.cases, size=size)


def _all_bugs(failed: list[dict[str, str]]) -> bool:
    """An error that nobody foresaw in every single case is not the data's fault: it is worth a retry and a report."""
    return all(item["failure_class"] == FailureClass.BUG for item in failed)


def _nothing_predicted(failed: list[dict[str, str]], found: list[Case], known: Mapping[str, Any]) -> bool:
    """Whether the step fails, where all cases of a part did. A part may have only broken ones; the part that ends last sees all."""
    return _all_bugs(failed) or all(known.get(case.case, {}).get("status") == "failed" for case in found)


def _key(case: Case, model: SelectedModel, settings: Settings, context: StepContext, studies: Studies | None) -> str | None:
    """What the case's segmentation depends on; None for a case whose files cannot even be read."""
    if studies is not None:
        study = studies.by_case.get(case.case)
        return case_key(model, settings, study.content()) if study else None
    try:
        return case_key(model, settings, [hash_file(path, pulse(context)) for path in case.images])
    except OSError:
        return None


@dataclass(slots=True, kw_only=True)
class _Work:
    """One part's cases, under its lock."""

    model: SelectedModel
    settings: Settings
    context: StepContext
    records: Records
    keys: Mapping[str, str | None]
    expected: Expected
    pictures: Path | None
    studies: Studies | None
    segs: SegWriter | None
    failed: list[dict[str, str]] = field(default_factory=list)

    def done(self, cases: Sequence[Case], *, probabilities: bool) -> dict[str, dict[str, Any]]:
        """Records of the cases whose segmentation is there already."""
        found = {}
        for case in cases:
            key = self.keys[case.case]
            record = self.records.done(case.case, key, probabilities=probabilities) if key else None
            if record is not None:
                found[case.case] = record
        return found

    def complete(self, done: Mapping[str, dict[str, Any]]) -> None:
        """Write the DICOM SEG where a finished case has none, or one with other codes."""
        for case, record in done.items():
            if self.segs is not None and record.get("seg_key") != self.segs.key:
                self.context.check_stop()
                self._keep(case, record)

    def predict(self, cases: list[Case], *, scratch: Path) -> None:
        """Predict what is not done yet."""
        if not cases:
            return  # nothing new: torch is not even imported
        with (
            self._converted(cases, scratch.with_suffix(".converted")) as ready,
            ReadBeside(self.records.markers, memory_mib=self.context.memory_mib) as reading,
        ):
            from nnunet_jobs.prediction.predictor import Predictor
            from nnunet_jobs.prediction.review import Review

            made = settings_key(self.model, self.settings)

            def keep(case: Case, record: dict[str, Any]) -> None:
                self._keep(case.case, {**record, "settings_key": made, "key": self.keys[case.case]})

            predictor = Predictor(
                self.model, self.context, self.settings, reading=reading, review=Review(self.expected, pictures=self.pictures)
            )
            for turn in reading.in_turns(ready):
                predictor.predict(turn, self.records.output, scratch=scratch, on_record=keep)

    @contextlib.contextmanager
    def _converted(self, cases: list[Case], folder: Path) -> Iterator[list[Case]]:
        """The cases with images that exist; converted ones are removed afterwards."""
        if self.studies is None:
            yield cases
            return
        fresh_folder(folder)
        try:
            yield self.studies.convert(cases, self.context)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, case: str, record: dict[str, Any]) -> None:
        if self.segs is not None and record["status"] == "predicted":
            record = self.segs.add(record, case, self.records.output)
            self.context.beat()
        self.records.write(case, record)
        if record["status"] == "failed":
            self.failed.append({"case": case, "reason": record["reason"], "failure_class": record["failure_class"]})
