"""Predict: cases with a selected model, each isolated, each found again by content when the work is taken up later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import Bug, DataError, FailureClass, Fault
from nnunet_jobs.contract.files import read_json
from nnunet_jobs.contract.params import PredictParams
from nnunet_jobs.dataset.volume import hash_file
from nnunet_jobs.prediction.cases import Case, collect_cases
from nnunet_jobs.prediction.model import SelectedModel, resolve_model
from nnunet_jobs.prediction.records import Records, Settings, case_key, settings_key

_SHOWN = 20


def run(params: PredictParams, context: StepContext) -> dict[str, Any]:
    """Predict this part's cases into ``params.output`` and merge ``predictions.json``.

    Returns:
        ``dataset``, ``model``, ``output``, ``predictions``, ``predicted``, ``already_done``, ``failed``, ``part``, ``parts``,
        and ``dice`` (``mean``, ``per_label``) where labels are known.

    Raises:
        ConfigError: no such dataset, model or folder, or a path outside the allowed roots.
        DataError: the model is damaged, or not one case could be predicted; every fault is in the report.
        Bug: the same, and no case was at fault.
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
    )
    description = read_json(model.members[0].folder / "dataset.json")
    cases = collect_cases(
        params.cases,
        workspace=workspace,
        dataset=dataset,
        file_ending=description["file_ending"],
        channels=len(description["channel_names"]),
    )[params.part :: params.parts]
    output.mkdir(parents=True, exist_ok=True)
    records = Records(output)
    with context.content_lock(records.part_lock(params.part, params.parts), what=f"part {params.part} of {output.name}"):
        keys = {case.case: _key(case, model, settings, context) for case in cases}
        done = {
            case.case
            for case in cases
            if not params.overwrite and (key := keys[case.case]) and records.done(case.case, key, probabilities=params.probabilities)
        }
        failed = _predict(
            [case for case in cases if case.case not in done],
            model,
            settings,
            context,
            records,
            keys,
            scratch=records.scratch(params.part, params.parts),
        )
        predictions = records.merge(model, settings)
    if cases and len(failed) == len(cases):
        faults = [Fault(code="not-predicted", message=item["reason"], case=item["case"]) for item in failed]
        shown = "; ".join(f"{item['case']}: {item['reason']}" for item in failed[:_SHOWN])
        # An error that nobody foresaw in every single case is not the data's fault: it is worth a retry and a report.
        kind = Bug if all(item["failure_class"] == FailureClass.BUG for item in failed) else DataError
        raise kind(f"none of {len(cases)} cases could be predicted: {shown}", faults=faults)
    return {
        "dataset": dataset,
        "model": model.model,
        "output": str(output),
        "predictions": str(predictions),
        "predicted": len(cases) - len(done) - len(failed),
        "already_done": len(done),
        "failed": [{"case": item["case"], "reason": item["reason"]} for item in failed],
        "dice": read_json(predictions)["dice"],
        "part": params.part,
        "parts": params.parts,
    }


def _key(case: Case, model: SelectedModel, settings: Settings, context: StepContext) -> str | None:
    """What the case's segmentation depends on; None for a case whose files cannot even be read."""

    def beat() -> None:
        context.check_stop()
        context.beat()

    try:
        return case_key(model, settings, [hash_file(path, beat) for path in case.images])
    except OSError:
        return None


def _predict(
    cases: list[Case],
    model: SelectedModel,
    settings: Settings,
    context: StepContext,
    records: Records,
    keys: dict[str, str | None],
    *,
    scratch: Path,
) -> list[dict[str, str]]:
    """Predict what is not done yet. Returns the failed cases with their reasons."""
    if not cases:
        return []  # nothing new: torch is not even imported
    from nnunet_jobs.prediction.predictor import Predictor

    failed = []
    made = settings_key(model, settings)

    def keep(case: Case, record: dict[str, Any]) -> None:
        records.write(case.case, {**record, "settings_key": made, "key": keys[case.case]})
        if record["status"] == "failed":
            failed.append({"case": case.case, "reason": record["reason"], "failure_class": record["failure_class"]})

    Predictor(model, context, settings).predict(cases, records.output, scratch=scratch, on_record=keep)
    return failed
