"""A small workspace with everything that a withdrawal touches, as its files are, and a run of the withdrawal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from devtools.testbed.data import context, register_dataset
from nnunet_jobs.contract.steps.params import PreprocessParams
from nnunet_jobs.contract.steps.withdrawal import WithdrawResult
from nnunet_jobs.contract.storage.files import read_json, repoint, write_json
from nnunet_jobs.contract.storage.withdrawals import WithdrawParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import entries
from nnunet_jobs.steps import withdraw

DATASET = "Dataset004_Small"


def take_out(workspace: Workspace, *cases: str, **params: Any) -> dict[str, Any]:
    """Withdraw cases in this process."""
    result = withdraw.run(WithdrawParams(dataset=DATASET, cases=list(cases), **params), context(workspace, "withdraw"))
    assert WithdrawResult.from_json(result).to_json() == result
    return result


def prepare(workspace: Workspace) -> dict[str, Any]:
    """Really preprocess for 2d, three folds."""
    from nnunet_jobs.steps import preprocess

    params = PreprocessParams(datasets=[DATASET], configurations=["2d"], folds=3)
    return dict(preprocess.run(params, context(workspace, "preprocess"))["datasets"][0])


def fill(workspace: Workspace, source: Path) -> str:
    """Register, preprocess, and put the files of a trained, promoted model and of a prediction there. Returns the version."""
    register_dataset(workspace, source, holdout_fraction=0.0)
    prepared = prepare(workspace)
    write_model(workspace, "first", prepared["version"], folds=(0, 1, "all"))
    repoint(workspace.champion_link(DATASET), workspace.model_root("first") / DATASET)
    write_predictions(workspace, sorted(workspace.manifest(DATASET)["cases"])[:3])
    return str(prepared["version"])


def write_model(
    workspace: Workspace, model: str, version: str, *, folds: tuple[int | str, ...], dataset: str = DATASET, pretrained: str | None = None
) -> Path:
    """The files that a training leaves, as far as a withdrawal looks at them."""
    root = workspace.model_root(model) / dataset
    write = {"version": version, "trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "pretrained_sha256": pretrained}
    root.mkdir(parents=True)
    write_json(root / "settings.json", write)
    version_folder = workspace.preprocessed_root(version) / DATASET
    splits = read_json(version_folder / "splits_final.json") if version_folder.is_dir() else [{"val": []}]
    for fold in folds:
        folder = root / "nnUNetTrainer__nnUNetPlans__2d" / f"fold_{fold}"
        (folder / "validation").mkdir(parents=True)
        (folder / "checkpoint_final.pth").write_bytes(b"weights")
        write_json(folder / "fold.json", {"files": {"checkpoint_final.pth": {"sha256": f"hash of {model} {fold}"}}})
        for case in splits[0 if fold == "all" else int(fold)]["val"]:
            for ending in (".nii.gz", ".npz", ".pkl"):
                (folder / "validation" / f"{case}{ending}").write_text(case)
    write_json(root / "model.json", {"schema": 1, "dataset": dataset, "model": model, "files": {}})
    return root


def write_predictions(workspace: Workspace, cases: list[str]) -> Path:
    """A prediction folder as the step leaves it."""
    folder = Path(workspace.output_roots[0]) / "new"
    (folder / ".cases").mkdir(parents=True)
    entries = {}
    for number, case in enumerate(cases):
        (folder / f"{case}.nii.gz").write_text(case)
        entry = {"status": "predicted", "model_hash": "h", "dice": {"front": 0.5 + number / 10}}
        entries[case] = entry
        write_json(folder / ".cases" / f"{case}.json", {"case": case, "files": {f"{case}.nii.gz": "sha"}, **entry})
    summary = {"schema": 1, "dataset": DATASET, "model": "first", "model_hash": "h", "predicted": len(cases), "failed": 0, "dice": None}
    write_json(folder / "predictions.json", {**summary, "cases": entries})
    return folder


def content(workspace: Workspace) -> dict[str, str]:
    """Every file of the workspace but locks, jobs and hash caches, and the ledger's events: path to text, without dates."""
    root, found = Path(workspace.raw).parent, {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        hidden = {".locks", "jobs", ".fingerprints", ".ledger"} & set(path.parts) or name == f"nnUNet_raw/.state/{DATASET}.json"
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and not hidden and path.suffix not in (".lock", ".tmp"):  # a killed write leaves its temporary file
            data = path.read_bytes()
            found[name] = json.dumps(_timeless(json.loads(data))) if path.suffix == ".json" else repr(data)
    found["ledger"] = repr([(entry.event, entry.model, entry.before) for entry in entries(workspace, DATASET)])
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in ("at", "previous", "updated")}
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[1], int) and isinstance(value[2], str):
            return [value[0], value[2]]  # a file record: size, modification time, sha256
        return [_timeless(item) for item in value]
    return value
