"""What a dataset's models scored on its hold-out, as far as the scores are kept beside the models. Nothing is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nnunet_jobs.contract.storage.workspace import MODEL_CARD, Workspace
from nnunet_jobs.selection.gate.scores import CaseScores, Dice
from nnunet_jobs.selection.holdout_scores import kept_dice
from nnunet_jobs.selection.judge import arrivals
from nnunet_jobs.selection.seen import Seen, patients, read_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """What is kept of one model.

    Attributes:
        dice: Dice by label name, by hold-out case.
        seen: What it was trained on.
    """

    dice: Mapping[str, Dice]
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptScores:
    """The kept scores of a dataset's models; each model's are read once.

    Attributes:
        workspace: Where the models are.
        dataset: Full name of the dataset.
        cases: Manifest entries of today's labelled hold-out cases.
        since: When each case became what it is.
        patients: Patient of each case.
    """

    workspace: Workspace
    dataset: str
    cases: Mapping[str, Mapping[str, Any]]
    since: Mapping[str, datetime]
    patients: Mapping[str, str]
    _read: dict[str, ModelScores | str] = field(default_factory=dict)

    @classmethod
    def of_dataset(cls, workspace: Workspace, dataset: str) -> KeptScores:
        """Read which hold-out cases the dataset has.

        Raises:
            ConfigError: The dataset is not registered.
        """
        manifest = workspace.manifest(dataset)
        cases = {case: entry for case, entry in sorted(manifest["cases"].items()) if entry["split"] == "holdout" and entry["label"]}
        return cls(workspace=workspace, dataset=dataset, cases=cases, since=arrivals(manifest), patients=patients(manifest))

    def of(self, model: str) -> ModelScores | str:
        """Return what is kept of a model, or a sentence that says why there is nothing."""
        if model not in self._read:
            self._read[model] = self._of(model)
        return self._read[model]

    def pairs(self, champion: ModelScores | None, challenger: ModelScores) -> list[CaseScores]:
        """Return the cases that neither model has trained on, and that the challenger has scores of.

        Args:
            champion: The model to compare with; its scores are empty for cases that it has none of.
            challenger: The model that is compared.
        """
        models = [model for model in (champion, challenger) if model is not None]
        return [
            CaseScores(
                case=case,
                group=self.patients[case],
                since=self.since[case],
                champion=champion.dice.get(case, {}) if champion else {},
                challenger=challenger.dice[case],
                anchor={},
            )
            for case in self.cases
            if case in challenger.dice and not any(model.seen.knows(case, self.patients[case]) for model in models)
        ]

    def _of(self, model: str) -> ModelScores | str:
        root = self.workspace.model_root(model) / self.dataset
        if not (root / MODEL_CARD).is_file():
            return f"the card of model {model} is gone"
        seen = read_seen(self.workspace, self.dataset, model)
        if seen is None:
            return f"nothing says what model {model} was trained on"
        dice = kept_dice(root, self.workspace.model_card(self.dataset, model)["hash"], self.cases)
        return ModelScores(dice=dice, seen=seen) if dice else f"model {model} has no kept scores of today's hold-out cases"
