"""Predicts cases with a selected model; each case is isolated, and found again by content when the work is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_jobs.context import StepContext, acting
from nnunet_jobs.contract.failure import Bug, ConfigError, DataError, FailureClass, Fault
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.steps.results import FailedCase, MeanDice, PredictResult
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.predictions import PREDICTIONS, model_folder
from nnunet_jobs.dataset.changes import beat_or_stop
from nnunet_jobs.dataset.readers.volume import hash_file
from nnunet_jobs.dicom.extra import dicom_packages
from nnunet_jobs.dicom.mark import holds_dicom
from nnunet_jobs.prediction.batch import Batch
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.incoming import Incoming, collect_cases, named_folder
from nnunet_jobs.prediction.model import SelectedModel, resolve_model
from nnunet_jobs.prediction.model_output import ModelOutput, model_of_run
from nnunet_jobs.prediction.parts import case_voxels
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.records import Records, converted_folder, scratch_folder
from nnunet_jobs.prediction.settings import Settings, case_key

if TYPE_CHECKING:
    from nnunet_jobs.prediction.studies import Studies

log = logging.getLogger("nnunet_jobs")

_SHOWN = 20


@with_workspace_umask
def run(params: PredictParams, context: StepContext) -> dict[str, Any]:
    """Predict this part's cases into the model's folder below ``params.output`` and merge its ``predictions.json``.

    Returns:
        :class:`~nnunet_jobs.contract.steps.results.PredictResult` as a JSON object.

    Raises:
        ConfigError: The dataset, model or folder does not exist, a path is outside the allowed roots, or there is no
            case with ``on_empty="fail"``.
        DataError: The model is damaged, more cases failed than ``max_failed``, or no case of all parts could be
            predicted; every fault is in the report.
        Bug: A file or folder of the job is missing, or no case of this part could be predicted and none was at fault.
    """
    workspace = context.workspace
    dataset = workspace.resolve_dataset(params.dataset)
    output = workspace.confine_output(params.output, field="output")
    chosen = model_of_run(
        output, params.model, workspace.champion(dataset), run=_of_run(context), of=[dataset, params.cases], parts=params.parts
    )
    model = resolve_model(workspace, dataset, chosen).with_folds(params.folds)
    os.environ.update(workspace.nnunet_environment(model=model.model))
    settings = Settings(
        mirroring=params.mirroring,
        step_size=params.step_size,
        postprocessing=params.postprocessing,
        probabilities=params.probabilities,
        fast=tuple(sorted(set(params.fast))),
    )
    description = read_json(model.members[0].folder / "dataset.json")
    scratch = scratch_folder(model_folder(output, model.model, model.hash), params.part, params.parts)
    folder = named_folder(params.cases, workspace=workspace)
    studies = _studies(folder, params, context, dataset, description, images=converted_folder(scratch)) if folder else None
    found = studies.incoming if studies else _cases(folder, params, context, dataset, description)
    if found.empty:
        return _nothing(params, dataset, model)
    segs = studies.seg_writer(model, description, params.segment_codes) if studies and params.dicom_seg else None
    output.mkdir(parents=True, exist_ok=True)
    model_output = ModelOutput(output, model.model, model.hash)
    records = Records(model_output.folder)
    expected = Expected.of(model)
    with context.content_lock(records.part_lock(params.part, params.parts), what=f"part {params.part} of {output.name}"):
        cases = _share(found.cases, params, context, records, studies)
        batch = Batch(
            model=model,
            settings=settings,
            context=context,
            records=records,
            model_output=model_output,
            markers=records.markers(params.part, params.parts),
            keys={case.case: _key(case, model, settings, context, studies) for case in cases},
            expected=expected,
            pictures=records.pictures if params.contact_sheet else None,
            studies=studies,
            segs=segs,
        )
        done = {} if params.overwrite else batch.done(cases, probabilities=params.probabilities)
        batch.complete(done)
        batch.predict([case for case in cases if case.case not in done], scratch=scratch)
        records.leave_out(params.cases, [item.to_json() for item in found.not_predicted])
        summary = records.merge(model, settings, expected, labels=description["labels"], contact_sheet=params.contact_sheet)
        model_output.show_all()
    failed = batch.failed
    _report(cases, found, failed)
    _require_enough(params, cases, found, failed, summary["cases"])
    return PredictResult(
        dataset=dataset,
        model=model.model,
        output=str(model_output.folder),
        predictions=str(model_output.folder / PREDICTIONS),
        predicted=len(cases) - len(done) - len({item["case"] for item in failed} - set(done)),
        already_done=len(set(done) - {item["case"] for item in failed}),
        failed=[FailedCase(case=item["case"], reason=item["reason"]) for item in failed],
        not_predicted=found.not_predicted,
        empty=False,
        flagged=summary["flagged"],
        dice=None if summary["dice"] is None else MeanDice.from_json(summary["dice"]),
        part=params.part,
        parts=params.parts,
    ).to_json()


def _nothing(params: PredictParams, dataset: str, model: SelectedModel) -> dict[str, Any]:
    """Return the result when there is no case, unless that is a fault."""
    if params.on_empty == "fail":
        what = "the list is empty" if params.cases == [] else "nothing is there"
        raise ConfigError(
            field="cases", value=params.cases, problem=what, fix="check whether the cases have arrived, or set on_empty to skip"
        )
    log.warning("cases=%r: there is no case, so nothing is predicted (on_empty=skip)", params.cases)
    return PredictResult(
        dataset=dataset,
        model=model.model,
        output=params.output,
        predictions=None,
        predicted=0,
        already_done=0,
        failed=[],
        not_predicted=[],
        empty=True,
        flagged=0,
        dice=None,
        part=params.part,
        parts=params.parts,
    ).to_json()


def _report(cases: Sequence[Case], found: Incoming, failed: Sequence[Mapping[str, str]]) -> None:
    """Log what a person must know, as the last lines."""
    for item in found.not_predicted[:_SHOWN]:
        log.warning("not predicted: %s %s", item.name, item.reason)
    if len(found.not_predicted) > _SHOWN:
        log.warning("not predicted: %d more, all listed in predictions.json", len(found.not_predicted) - _SHOWN)
    for failure in failed[:_SHOWN]:
        log.error("case %s failed: %s", failure["case"], failure["reason"])
    if failed:
        log.error("%d of %d cases failed; predictions.json has all reasons", len(failed), len(cases))


def _require_enough(
    params: PredictParams, cases: Sequence[Case], found: Incoming, failed: Sequence[Mapping[str, str]], known: Mapping[str, Any]
) -> None:
    """Fail the step if too few cases were predicted. A part without failures does not fail because of another part."""
    if not found.cases:
        reasons = "; ".join(f"{item.name} {item.reason}" for item in found.not_predicted[:_SHOWN])
        raise DataError(f"cases={params.cases!r}: holds no case; {reasons}")
    if not failed:
        return
    faults = [Fault(code="not-predicted", message=item["reason"], case=item["case"]) for item in failed]
    shown = "; ".join(f"{item['case']}: {item['reason']}" for item in failed[:_SHOWN])
    if len(failed) == len(cases) and _nothing_predicted(failed, found.cases, known):
        kind = Bug if _all_bugs(failed) else DataError
        raise kind(f"none of {len(cases)} cases could be predicted: {shown}", faults=faults)
    total = sum(known.get(case.case, {}).get("status") == "failed" for case in found.cases)
    if params.max_failed is not None and total > params.max_failed:
        raise DataError(
            f"max_failed={params.max_failed}: {total} of {len(found.cases)} cases failed, {len(failed)} of them in this part; "
            f"the others are predicted: {shown}",
            faults=faults,
        )


def _of_run(context: StepContext) -> dict[str, str]:
    """Return the identity of the DAG run; empty outside of a run."""
    labels = acting(context)
    return {name: labels[name] for name in ("dag_id", "run_id") if "run_id" in labels and name in labels}


def _cases(folder: Path | None, params: PredictParams, context: StepContext, dataset: str, description: Mapping[str, Any]) -> Incoming:
    if params.dicom_seg:
        raise ConfigError(
            field="dicom_seg",
            value=True,
            problem=f"cases={params.cases!r} are not DICOM studies",
            fix="name a folder that holds their DICOM files",
        )
    return collect_cases(
        folder or params.cases,
        workspace=context.workspace,
        dataset=dataset,
        file_ending=description["file_ending"],
        channels=len(description["channel_names"]),
        case_pattern=params.case_pattern,
    )


def _studies(
    folder: Path, params: PredictParams, context: StepContext, dataset: str, description: Mapping[str, Any], *, images: Path
) -> Studies | None:
    """Find the studies of a folder of DICOM files; return None for any other folder."""
    if not holds_dicom(folder):
        return None
    if description["file_ending"] != ".nii.gz":
        raise ConfigError(
            field="cases", value=params.cases, problem=f"DICOM is converted to .nii.gz, the model reads {description['file_ending']}"
        )
    with dicom_packages(field="cases", value=params.cases):
        from nnunet_jobs.prediction.studies import find_studies, registered_rules, series_rules
    rules = series_rules(params.series or registered_rules(context.workspace, dataset), description["channel_names"])
    return find_studies(folder, rules=rules, dataset=dataset, images=images, context=context, as_seg=params.dicom_seg)


def _share(found: list[Case], params: PredictParams, context: StepContext, records: Records, studies: Studies | None) -> list[Case]:
    """Return the cases of this part. All parts of one DAG run and their retries use the same division."""
    run = list(_of_run(context).values())
    plans = records.part_plans(params.parts)
    size = studies.voxels if studies else case_voxels
    return plans.share(found, part=params.part, parts=params.parts, run=run, of=params.cases, size=size)


def _all_bugs(failed: Sequence[Mapping[str, str]]) -> bool:
    """Whether every case failed by an unexpected error, which is not the data's fault and is worth a retry and a report."""
    return all(item["failure_class"] == FailureClass.BUG for item in failed)


def _nothing_predicted(failed: Sequence[Mapping[str, str]], found: list[Case], known: Mapping[str, Any]) -> bool:
    """Whether the step fails if all cases of a part failed. A part may have only broken cases; the last part sees all."""
    return _all_bugs(failed) or all(known.get(case.case, {}).get("status") == "failed" for case in found)


def _key(case: Case, model: SelectedModel, settings: Settings, context: StepContext, studies: Studies | None) -> str | None:
    """Return the hash of what the case's segmentation depends on; None if the case's files cannot be read."""
    if studies is not None:
        study = studies.by_case.get(case.case)
        return case_key(model, settings, study.content()) if study else None
    try:
        return case_key(model, settings, [hash_file(path, beat_or_stop(context)) for path in case.images])
    except OSError:
        return None
