"""What a model has seen, where it was fine-tuned from one that nobody selected."""

from __future__ import annotations

import pytest

from nnunet_jobs.contract.storage.files import write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.selection.seen import read_seen, write_seen
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.training.fold import SETTINGS_RECORD

DATASET = "Dataset005_Phantom"


def version(workspace: Workspace, name: str, case: str) -> None:
    folder = workspace.preprocessed_root(name) / DATASET
    folder.mkdir(parents=True)
    write_json(folder / "splits_final.json", [{"train": [case], "val": []}])


@pytest.mark.parametrize("chain", [("origin",), ("middle", "origin")])
def test_cases_of_origins_that_were_never_selected_are_seen_too(workspace: Workspace, chain: tuple[str, ...]) -> None:
    raw = workspace.raw_dataset(DATASET)
    raw.mkdir(parents=True)
    write_json(raw / "manifest.json", {"cases": {case: {"group": f"patient of {case}"} for case in ("origin", "middle", "tuned")}})
    for model, origin in (("origin", None), ("middle", "origin")):
        version(workspace, f"v_{model}", model)
        root = workspace.model_root(model) / DATASET
        root.mkdir(parents=True)
        write_json(root / SETTINGS_RECORD, {"version": f"v_{model}", "pretrained_sha256": origin})
    version(workspace, "v_tuned", "tuned")
    root = workspace.model_root("tuned") / DATASET
    root.mkdir(parents=True)
    tuned = Trained(
        dataset=DATASET, model="tuned", version="v_tuned", trainer="t", plans="p", root=root,
        preprocessed=workspace.preprocessed_root("v_tuned") / DATASET, configurations=(), folds=(),
        settings={"pretrained_sha256": chain[0]},
    )  # fmt: skip
    write_seen(tuned, workspace)
    seen = read_seen(workspace, DATASET, "tuned")
    assert seen is not None
    assert seen.cases == {"tuned", *chain}
    assert seen.knows("another visit", "patient of origin")
