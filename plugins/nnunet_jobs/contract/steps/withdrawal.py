"""Defines the result of a withdrawal of cases: what is removed, what stays, and what a person must still do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nnunet_jobs.contract.steps.base import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLoss(StepResult):
    """The cases and files that a preprocessed version loses.

    Attributes:
        version: Name of the version.
        cases: Maps a case id to ``train`` and ``val``, the folds in which the case was.
        files: Number of files.
    """

    of: ClassVar[str] = "withdraw, a version"

    version: str
    cases: dict[str, dict[str, list[int]]]
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedModel(StepResult):
    """One model that has seen withdrawn cases.

    Attributes:
        dataset: Dataset of the model; a fine-tuned model may be of another dataset.
        model: Id of the model.
        cases: Ids of the cases.
        configurations: Maps a configuration to the folds that were trained on the cases.
        through: Id of the model that it was fine-tuned from; None if it was trained on the cases itself.
        promoted: Whether the model is the champion.
        files: Number of predictions of the cases below its folder, which are removed.
    """

    of: ClassVar[str] = "withdraw, a model"

    dataset: str
    model: str
    cases: list[str]
    configurations: dict[str, list[int | str]] = field(default_factory=dict)
    through: str | None = None
    promoted: bool = False
    files: int = 0

    def __str__(self) -> str:
        where = "; ".join(f"{name} folds {', '.join(map(str, folds))}" for name, folds in self.configurations.items())
        how = f"fine-tuned from {self.through}" if self.through else where or "no fold has begun"
        return f"model {self.model} of {self.dataset}{' (promoted)' if self.promoted else ''}: {how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawnPrediction(StepResult):
    """A folder of predictions that holds predictions of the cases.

    Attributes:
        folder: Path of the folder.
        cases: Ids of the cases that it holds.
        deleted: Whether this run deleted their predictions.
    """

    of: ClassVar[str] = "withdraw, a folder of predictions"

    folder: str
    cases: list[str]
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseCopy(StepResult):
    """A case that is registered with the same image as a withdrawn one.

    Attributes:
        dataset: Full name of its dataset.
        case: Id of the case.
    """

    of: ClassVar[str] = "withdraw, a copy"

    dataset: str
    case: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawResult(StepResult):
    """Says what a withdrawal did, or would do with ``dry_run``.

    Attributes:
        dataset: Full name of the dataset.
        cases: Ids of the cases that were named, directly or by their patient.
        groups: Patients that were named.
        dry_run: Whether nothing was changed.
        restored: Whether a withdrawal was lifted.
        already_done: Whether all of it had been withdrawn before.
        splits: Maps a registered case to its split: ``train``, ``holdout`` or ``test``.
        versions: Preprocessed versions, with what each loses.
        models: Models that were trained on the cases.
        model_files: Number of predictions of the cases in models' folders.
        demoted: Ids of the models that are no longer the champion.
        predictions: Folders of predictions that hold the cases.
        copies: Cases that are registered with the same images.
        left: What a person must still do, in sentences.
    """

    of: ClassVar[str] = "withdraw"

    dataset: str
    cases: list[str]
    groups: list[str]
    dry_run: bool
    restored: bool
    already_done: bool = False
    splits: dict[str, str] = field(default_factory=dict)
    versions: list[VersionLoss] = field(default_factory=list)
    models: list[AffectedModel] = field(default_factory=list)
    model_files: int = 0
    demoted: list[str] = field(default_factory=list)
    predictions: list[WithdrawnPrediction] = field(default_factory=list)
    copies: list[CaseCopy] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
