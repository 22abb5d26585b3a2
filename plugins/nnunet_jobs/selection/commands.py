"""Describes the same prediction with stock nnU-Net: its commands as argv lists, and its inference_information.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.selection.compare import Candidate
from nnunet_jobs.selection.trained import Trained

PLACEHOLDERS = {
    "{input}": "folder of images in nnU-Net's naming",
    "{output}": "folder for the segmentations",
    "{work}": "folder for intermediate files",
    "{model}": "folder that holds this card; nnUNet_results must be the folder above it",
}


def member(trained: Trained, configuration: str) -> dict[str, Any]:
    """Describe a member of the selection; a cascade includes the stage that it needs. ``further_folds`` predict only on request."""
    entry: dict[str, Any] = {
        "trainer": trained.trainer,
        "plans": trained.plans,
        "configuration": configuration,
        "folds": list(trained.folds),
    }
    if further := trained.further_folds(configuration):
        entry["further_folds"] = list(further)
    previous = trained.previous_stage(configuration)
    return {**entry, "previous_stage": member(trained, previous)} if previous else entry


def stages(members: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return all stages of the members, each stage before the one that needs it."""
    found: list[Mapping[str, Any]] = []
    for entry in members:
        chain = [*stages([entry["previous_stage"]]), entry] if "previous_stage" in entry else [entry]
        found += [stage for stage in chain if stage not in found]
    return found


def commands(dataset: str, selection: Mapping[str, Any]) -> list[list[str]]:
    """Return the commands for prediction, ensembling and postprocessing; see :data:`PLACEHOLDERS`."""
    members = selection["members"]
    several, post = len(members) > 1, bool(selection["postprocessing"])
    combined = "{work}/predicted" if post else "{output}"
    found: list[list[str]] = []
    outputs = []
    for number, entry in enumerate(members, start=1):
        outputs.append(f"{{work}}/member_{number}" if several else combined)
        found += _predict(dataset, entry, outputs[-1], probabilities=several)
    if several:
        found.append(["nnUNetv2_ensemble", "-i", *outputs, "-o", combined])
    if post:
        folder = "{model}/" + "__".join(members[0][name] for name in ("trainer", "plans", "configuration"))
        found.append(
            [
                "nnUNetv2_apply_postprocessing", "-i", combined, "-o", "{output}", "-pp_pkl_file", "{model}/postprocessing.pkl",
                "-plans_json", f"{folder}/plans.json", "-dataset_json", f"{folder}/dataset.json",
            ]
        )  # fmt: skip
    return found


def _predict(dataset: str, entry: Mapping[str, Any], output: str, *, probabilities: bool) -> list[list[str]]:
    found = []
    argv = [
        "nnUNetv2_predict", "-d", dataset, "-i", "{input}", "-o", output, "-f", *map(str, entry["folds"]),
        "-tr", entry["trainer"], "-c", entry["configuration"], "-p", entry["plans"],
    ]  # fmt: skip
    if "previous_stage" in entry:
        before = f"{output}_{entry['previous_stage']['configuration']}" if output != "{output}" else "{work}/previous_stage"
        found += _predict(dataset, entry["previous_stage"], before, probabilities=False)
        argv += ["-prev_stage_predictions", before]
    if probabilities:
        argv.append("--save_probabilities")
    return [*found, argv]


def postprocessed_folder(root: Path) -> Path:
    """Return the folder of the choice's cross-validated and postprocessed predictions, as ``inference_information.json`` names it.

    Raises:
        FileNotFoundError: The model was not cross-validated.
    """
    best = read_json(root / "inference_information.json")["best_model_or_ensemble"]
    return (root / str(best["postprocessing_file"])).parent / "postprocessed"


def inference_information(trained: Trained, candidates: Sequence[Candidate], chosen: Candidate, post_dice: float | None) -> dict[str, Any]:
    """Make nnU-Net's ``inference_information.json``. Paths are relative to the model's folder, so it may be moved."""

    def description(configuration: str) -> dict[str, str]:
        return {"configuration": configuration, "trainer": trained.trainer, "plans_identifier": trained.plans}

    folder = chosen.folder.relative_to(trained.root).as_posix()
    return {
        "folds": list(trained.folds),
        "dataset_name_or_id": trained.dataset,
        "considered_models": [
            {"plans": trained.plans, "configuration": configuration, "trainer": trained.trainer} for configuration in trained.configurations
        ],
        "ensembling_allowed": any(len(candidate.configurations) > 1 for candidate in candidates),
        "all_results": {candidate.name: candidate.dice for candidate in candidates},
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": chosen.dice,
            "result_on_crossval_post_pp": post_dice,
            "postprocessing_file": f"{folder}/postprocessing.pkl",
            "some_plans_file": f"{folder}/plans.json",
            "selected_model_or_models": [description(configuration) for configuration in chosen.configurations],
        },
    }
