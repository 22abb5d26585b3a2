"""Reads from a model's card what is needed to check an upload before it is queued."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Describes a selected model: the number of images of a case, and the file ending of images and segmentation."""

    dataset: str
    model: str
    hash: str
    channels: int
    file_ending: str


def model_facts(workspace: Workspace, dataset: str | int, model: str | None) -> ModelFacts:
    """Describe the named model of a dataset, or the promoted one.

    Raises:
        ConfigError: The dataset or model does not exist, or no model is promoted. The message has names of the server's
            folders.
    """
    name = workspace.resolve_dataset(dataset)
    chosen = model or workspace.champion(name)
    if chosen is None:
        raise ConfigError(
            field="dataset", value=name, problem="no model is promoted yet", fix="run FindBestConfigOperator, or name a model"
        )
    card = workspace.model_card(name, chosen)
    described = next((path for path in card["files"] if path.rpartition("/")[2] == "dataset.json"), None)
    if described is None:
        raise ConfigError(
            field="model", value=chosen, problem="its card names no dataset.json", fix=f"run FindBestConfigOperator for {name} again"
        )
    description = read_json(workspace.model_root(chosen) / name / described)
    return ModelFacts(
        dataset=name,
        model=chosen,
        hash=str(card["hash"]),
        channels=len(description["channel_names"]),
        file_ending=str(description["file_ending"]),
    )
