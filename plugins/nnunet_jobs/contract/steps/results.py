"""Defines the results of the five steps: one frozen dataclass for each, which a step makes and users of its JSON object read.

``run(params, context)`` returns the JSON object, ``result.json`` holds it below ``result``, and an operator returns it as XCom.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from nnunet_jobs.contract.steps.base import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterResult(StepResult):
    """The result of a registration.

    Attributes:
        dataset: Full name, such as ``Dataset004_Hippocampus``.
        dataset_id: nnU-Net's number of the dataset.
        hash: Content hash of all cases, the tables of channels and labels, and the file ending.
        training_hash: The same of the training cases alone.
        train: Number of training cases that are registered now.
        holdout: Number of held-out cases that are registered now.
        test: Number of test cases, whose images are in imagesTs without labels.
        added: Number of cases that this run added.
        changed: Number of registered cases whose content this run replaced.
        removed: Number of cases that this run removed.
        withdrawn: Number of cases of the source that stay out because consent was withdrawn.
        already_done: Whether nothing had to be written.
        path: The dataset's folder in nnUNet_raw.
        report: Name of the report's page in the job's folder; None when it could not be written.
    """

    of: ClassVar[str] = "register"

    dataset: str
    dataset_id: int
    hash: str
    training_hash: str
    train: int
    holdout: int
    test: int
    added: int
    changed: int
    removed: int
    withdrawn: int
    already_done: bool
    path: str
    report: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessedDataset(StepResult):
    """The preprocessed version of one dataset.

    Attributes:
        dataset: Full name of the dataset.
        version: Name of the version, which is the current one now.
        path: Folder of the version in nnUNet_preprocessed.
        plans: Name of the plans.
        configurations: Configurations that the version has.
        folds: Number of cross-validation splits.
        cases: Number of training cases.
        computed: Number of arrays that this run computed, over all configurations.
        linked: Number of arrays that were taken from an earlier version or attempt, over all configurations.
        replanned: Whether new plans replaced earlier ones.
        reason: Why plans were made or kept, for users.
        already_done: Whether the version was there before.
    """

    of: ClassVar[str] = "preprocess, a dataset"

    dataset: str
    version: str
    path: str
    plans: str
    configurations: list[str]
    folds: int
    cases: int
    computed: int
    linked: int
    replanned: bool
    reason: str
    already_done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessResult(StepResult):
    """The preprocessed versions. The first five fields are those of the first dataset.

    Attributes:
        dataset: Full name of the first dataset.
        version: Name of its version.
        plans: Name of its plans.
        configurations: Configurations that its version has.
        folds: Number of its cross-validation splits.
        datasets: All datasets, in the order of the parameters.
    """

    of: ClassVar[str] = "preprocess"

    dataset: str
    version: str
    plans: str
    configurations: list[str]
    folds: int
    datasets: list[PreprocessedDataset]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(StepResult):
    """One trained and validated fold.

    Attributes:
        dataset: Full name of the dataset.
        version: Preprocessed version that the fold was trained on.
        model: Id of the model, which all folds and configurations of one recipe share.
        trainer: Name of the trainer class.
        plans: Name of the plans.
        configuration: Configuration of the plans.
        fold: Number of the fold, or ``all``.
        path: Folder of the fold.
        dice: Mean foreground Dice of the validation, 0 to 1; None for fold ``all``, and where no label occurs.
        dice_per_label: Dice by label name, None where it is undefined; None as a whole for fold ``all``.
        dice_on_training_cases: For fold ``all``, mean foreground Dice of cases that were trained on; else None.
        epochs: Number of epochs that the fold was trained for.
        resumed_from: Epoch that a resumed training began with; None after a fresh start.
        already_done: Whether the fold was complete before.
        seconds: Time that this run took, in seconds.
    """

    of: ClassVar[str] = "train"

    dataset: str
    version: str
    model: str
    trainer: str
    plans: str
    configuration: str
    fold: int | str
    path: str
    dice: float | None
    dice_per_label: dict[str, float | None] | None
    dice_on_training_cases: float | None
    epochs: int | None
    resumed_from: int | None
    already_done: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FindBestResult(StepResult):
    """The selected configuration or ensemble, and whether its model is promoted. Dice is the mean over the foreground, 0 to 1.

    Attributes:
        dataset: Full name of the dataset.
        model: Id of the model.
        choice: Stock nnU-Net's name of the chosen configuration or ensemble.
        cv_dice: Dice of the cross-validation; None without a cross-validation.
        cv_dice_postprocessed: The same after the selected postprocessing.
        holdout_dice: Dice of the held-out cases; None where there are none.
        holdout_dice_per_label: The same by label name, None where it is undefined; None as a whole without held-out cases.
        promoted: Whether this run made the model the champion.
        is_champion: Whether the model is the champion now, regardless of who promoted it.
        card: Path of the model card.
        already_done: Whether the selection was there before.
        decision: What the gate decided about the model: ``promote``, ``keep`` or ``ask``; None where it was never judged.
        reason: What was compared on how many cases, both scores, and why, in a sentence; None likewise.
        champion_before: The champion that it was compared with; None where there was none.
        gain: Observed gain in Dice on the same cases; None where nothing could be compared.
        expected_gain: The same, corrected for having been selected; None likewise.
        compared_cases: Number of cases that were compared.
    """

    of: ClassVar[str] = "find_best_config"

    dataset: str
    model: str
    choice: str
    cv_dice: float | None
    cv_dice_postprocessed: float | None
    holdout_dice: float | None
    holdout_dice_per_label: dict[str, float | None] | None
    promoted: bool
    is_champion: bool
    card: str
    already_done: bool
    decision: str | None = None
    reason: str | None = None
    champion_before: str | None = None
    gain: float | None = None
    expected_gain: float | None = None
    compared_cases: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase(StepResult):
    """A case that could not be predicted.

    Attributes:
        case: Id of the case.
        reason: Why it failed, for users.
    """

    of: ClassVar[str] = "predict, a failed case"

    case: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPredicted(StepResult):
    """A file or folder that was found among the cases and is not a case.

    Attributes:
        name: File or folder, relative to the folder of the cases.
        reason: Why it is not predicted, for users.
    """

    of: ClassVar[str] = "predict, a file that is no case"

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDice(StepResult):
    """Dice of predicted cases whose labels are known, 0 to 1.

    Attributes:
        cases: Number of cases with a reference.
        mean: Mean over the labels that exist in a reference; None if none does.
        per_label: Mean over cases by label name; None for a label that no reference has.
    """

    of: ClassVar[str] = "predict, Dice"

    cases: int
    mean: float | None
    per_label: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult(StepResult):
    """The predictions of one part.

    Attributes:
        dataset: Full name of the model's dataset.
        model: Id of the model.
        output: Folder of the model's predictions.
        predictions: Path of ``predictions.json``; None when there was no case.
        predicted: Number of cases of this part that this run predicted.
        already_done: Number of cases of this part that were predicted before.
        failed: Cases of this part that failed.
        not_predicted: Other files among the cases. The prediction API of version 0.1 did not write it.
        empty: Whether there was no case. The prediction API of version 0.1 did not write it.
        flagged: Number of cases that look wrong, in all parts so far. The prediction API of version 0.1 did not write it.
        dice: Dice of all parts so far; None where no labels are known.
        part: Number of this part, from 0.
        parts: Number of parts that share the cases.
    """

    of: ClassVar[str] = "predict"

    dataset: str
    model: str
    output: str
    predictions: str | None
    predicted: int
    already_done: int
    failed: list[FailedCase]
    not_predicted: list[NotPredicted] = field(default_factory=list)
    empty: bool = False
    flagged: int = 0
    dice: MeanDice | None
    part: int
    parts: int


RESULTS: dict[str, type[StepResult]] = {
    result.of: result for result in (RegisterResult, PreprocessResult, TrainResult, FindBestResult, PredictResult)
}
"""Maps a step's name to the class of its result."""
