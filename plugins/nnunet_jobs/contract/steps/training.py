"""Defines the parameters of the steps *preprocess*, *train* and *find_best_config*."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.configurations import CONFIGURATIONS, STOCK_PLANNERS, check_custom, check_names
from nnunet_jobs.contract.steps.patterns import NAME
from nnunet_jobs.contract.steps.promotion import PROMOTE, PromotionPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessParams(StepParams):
    """Fingerprint, plan, preprocess and split one or several registered datasets.

    Attributes:
        datasets: Dataset ids or full names.
        configurations: Configurations of the plans, custom ones included.
        planner: Name of any nnU-Net experiment planner class.
        gpu_memory_gb: The planner's GPU memory target in GB.
        plans: Name of the plans; the planner's own name if None.
        custom_configurations: Maps a name to a plans entry, such as ``{"2d_tiny": {"inherits_from": "2d", "batch_size":
            16}}``.
        replan: ``auto`` keeps valid plans, ``always`` makes new ones, ``never`` keeps the existing ones.
        folds: Number of splits.
        seed: Seed of the splits.
        processes: Number of cases to preprocess at the same time; 0 chooses it by cores and memory.
    """

    step: ClassVar[str] = "preprocess"

    datasets: list[str | int]
    configurations: list[str] = field(default_factory=lambda: ["2d", "3d_fullres"])
    planner: str = "ExperimentPlanner"
    gpu_memory_gb: float | None = None
    plans: str | None = None
    custom_configurations: dict[str, Any] = field(default_factory=dict)
    replan: str = "auto"
    folds: int = 5
    seed: int = 12345
    processes: int = 0

    def _check(self) -> None:
        self.require(bool(self.datasets), "datasets", "name at least one dataset")
        self.require(bool(self.configurations), "configurations", "name at least one configuration")
        # The configurations of a site's own planner, or of kept plans, are not known here.
        stock = self.replan != "never" and self.planner in STOCK_PLANNERS
        try:
            check_custom(self.custom_configurations, CONFIGURATIONS if stock else None)
            check_names(self.configurations, (*CONFIGURATIONS, *self.custom_configurations) if stock else ())
        except ConfigError as error:
            raise error.told(where=f"{self.step}:") from None
        self.require(bool(NAME.fullmatch(self.planner)), "planner", "must be a Python class name")
        self.require(self.plans is None or bool(NAME.fullmatch(self.plans)), "plans", "must be a plain name")
        self.require(self.replan in ("auto", "always", "never"), "replan", "must be auto, always or never")
        self.require(self.folds >= 2, "folds", "must be 2 or more")
        self.require(self.processes >= 0, "processes", "must be 0 or more")
        self.require(self.gpu_memory_gb is None or self.gpu_memory_gb > 0, "gpu_memory_gb", "must be more than 0 GB")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParams(StepParams):
    """Train one fold of one configuration.

    Attributes:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        configuration: Configuration of the plans.
        fold: Number of the fold, from 0, or ``all``.
        version: Preprocessed version from PreprocessOperator's result; the current one if None.
        trainer: Name of a trainer class, nnU-Net's or your own.
        plans: Name of the plans.
        epochs: Number of epochs; the trainer's own if None.
        iterations: Training iterations in an epoch; the trainer's own if None.
        val_iterations: Validation iterations in an epoch; the trainer's own if None.
        optimizer: ``sgd`` or ``adamw``; the trainer's own if None.
        initial_lr: Initial learning rate of the polynomial schedule.
        mirroring: False trains and predicts without mirroring; the trainer decides if None.
        pretrained: Checkpoint file, or model id of this workspace, to fine-tune from. With equal labels and
            architecture the full state is loaded, else all weights that fit; the others are logged.
        npz: Also save validation probabilities, needed for ensembles.
        checkpoint_every: Epochs between verified checkpoints.
        early_stop: Stop after this many epochs without a better smoothed Dice.
        seed: Seed of Python, NumPy and torch; random if None.
        plots: Write nnU-Net's progress.png after each epoch, which takes about one second each.
    """

    step: ClassVar[str] = "train"

    dataset: str | int
    configuration: str
    fold: int | str
    version: str | None = None
    trainer: str = "nnUNetTrainer"
    plans: str = "nnUNetPlans"
    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None
    optimizer: str | None = None
    initial_lr: float | None = None
    mirroring: bool | None = None
    pretrained: str | None = None
    npz: bool = False
    checkpoint_every: int = 1
    early_stop: int | None = None
    seed: int | None = None
    plots: bool = False

    def _check(self) -> None:
        fold_fits = self.fold == "all" or (isinstance(self.fold, int) and self.fold >= 0) or str(self.fold).isdigit()
        self.require(fold_fits, "fold", "must be 0 or more, or 'all'")
        if isinstance(self.fold, str) and self.fold.isdigit():
            object.__setattr__(self, "fold", int(self.fold))
        for name in ("epochs", "iterations", "val_iterations", "checkpoint_every", "early_stop"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "must be 1 or more")
        self.require(bool(NAME.fullmatch(self.trainer)), "trainer", "must be a Python class name that begins with a letter")
        self.require(bool(NAME.fullmatch(self.plans)), "plans", "must be a plain name")
        path_fits = self.pretrained is None or "/" not in self.pretrained or self.pretrained.startswith("/")
        self.require(path_fits, "pretrained", "must be a model id or an absolute path")
        self.require(self.optimizer in (None, "sgd", "adamw"), "optimizer", "must be sgd, adamw or empty")
        self.require(self.seed is None or 0 <= self.seed < 2**32, "seed", f"must be 0 to {2**32 - 1}")
        lr_fits = self.initial_lr is None or (math.isfinite(self.initial_lr) and self.initial_lr > 0)
        self.require(lr_fits, "initial_lr", "must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FindBestParams(StepParams):
    """Choose the best configuration or ensemble of one model, write its card, and promote it if requested.

    Attributes:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        model: Model id from TrainFoldOperator's result; the newest complete one if None.
        configurations: Configurations to compare; all trained ones if None.
        folds: Folds that must be complete; or ``["all"]``, which takes the one configuration whose fold ``all`` is
            trained as it is, without a cross-validation, for ``promote`` ``always`` or ``never``.
        trainer: Trainer class of the model.
        plans: Name of its plans.
        ensembles: Also try pairs of configurations.
        repair: Run the validation where its output is missing, instead of refusing.
        promote: ``if_better`` (beyond chance than the champion, on the same cases), ``if_not_worse`` (than the last model
            that a person approved), ``ask`` (a person decides), ``never`` or ``always``. Where nothing but fold ``all`` is
            trained, ``always`` takes it as if ``folds`` were ``["all"]``.
        gate: Further fields of the promotion policy, such as ``min_gain``; see
            :class:`~nnunet_jobs.contract.steps.promotion.PromotionPolicy`.
        tolerance_mm: Distance in mm up to which a surface counts as right in the NSD: one number, or numbers by label
            name; labels that are not named have 1.0.
        recipe: Any string, kept in the card; the DAG builder puts the hash of its settings here to find finished work.
    """

    step: ClassVar[str] = "find_best_config"

    dataset: str | int
    model: str | None = None
    configurations: list[str] = field(default_factory=list)
    folds: list[int | str] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    trainer: str = "nnUNetTrainer"
    plans: str = "nnUNetPlans"
    ensembles: bool = True
    repair: bool = True
    promote: str = "if_better"
    gate: dict[str, Any] = field(default_factory=dict)
    tolerance_mm: float | dict[str, float] = 1.0
    recipe: str | None = None

    def _check(self) -> None:
        self.require(bool(self.folds), "folds", "name at least one fold")
        object.__setattr__(self, "folds", [int(fold) if str(fold).isdigit() else fold for fold in self.folds])
        fit = self.folds == ["all"] or all(isinstance(fold, int) and fold >= 0 for fold in self.folds)
        self.require(fit, "folds", "name numbered folds, 0 and up, or 'all' alone: it has no validation that others could be compared with")
        fix = "fold 'all' has no validation to compare by; set promote to always or never, or name numbered folds"
        self.require(self.folds != ["all"] or self.promote in ("always", "never"), "promote", fix)
        self.require(self.promote in PROMOTE, "promote", f"must be one of {', '.join(PROMOTE)}")
        self.require("promote" not in self.gate, "gate", "holds the other fields of the policy; set promote itself")
        self.policy()
        distances = self.tolerance_mm.values() if isinstance(self.tolerance_mm, dict) else [self.tolerance_mm]
        self.require(all(distance >= 0 for distance in distances), "tolerance_mm", "must be 0 mm or more")

    def policy(self) -> PromotionPolicy:
        """Return the promotion policy that ``promote`` and ``gate`` describe.

        Raises:
            ConfigError: ``gate`` has an unknown field, or one that is out of range.
        """
        return PromotionPolicy.from_json({**self.gate, "promote": self.promote})
