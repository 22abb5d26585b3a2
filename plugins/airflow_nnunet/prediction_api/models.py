"""What a dataset's model reads, from its card: enough to judge an upload before it waits in a queue."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A selected model. ``channels``: images a case must have. ``file_ending``: of each of them, and of the segmentation."""

    dataset: str
    model: str
    hash: str
    channels: int
    file_ending: str


def model_facts(workspace: Workspace, dataset: str | int, model: str | None) -> ModelFacts:
    """The named model of a dataset, or the promoted one.

    Raises:
        ConfigError: No such dataset or model, or nothing is promoted. The message names folders of the server.
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
