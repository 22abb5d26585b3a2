"""Operator of the step ``find_best_config``, which chooses, describes and promotes a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_nnunet.jobs.assets import PROMOTED, model_promoted
from airflow_nnunet.operators.base import NnunetOperator, as_list
from airflow_nnunet.operators.specification import templated
from airflow_nnunet.settings.pool_names import GPU_POOL
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.steps.results import FindBestResult

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg


class FindBestConfigOperator(NnunetOperator):
    """Choose the best configuration or ensemble of a model, write its card, and promote it when it may be promoted.

    All fields are templates. Returns the ``choice``, cross-validation Dice before and after postprocessing, hold-out
    Dice, ``promoted`` (whether this run promoted the model) and ``is_champion`` (whether it is the promoted model now).
    Sends the event of :func:`~airflow_nnunet.jobs.assets.model_asset` only when this run promoted the model.

    Args:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        model: Model id from TrainFoldOperator's result; the newest complete one when empty.
        configurations: Configurations to compare; all trained ones when empty.
        folds: Folds that must be complete; ``["all"]`` selects the one configuration trained on all cases, without
            cross-validation, and needs ``promote="always"`` or ``"never"``.
        trainer: Trainer class of the model.
        plans: Name of the model's plans.
        ensembles: Whether to compare pairs of configurations too.
        repair: Whether to run a fold's validation if its output is missing, instead of refusing.
        promote: ``if_better`` promotes what is better than the promoted model beyond chance, on the same cases;
            ``if_not_worse`` what is not worse than the last model that a person approved; ``ask`` leaves it to a person;
            ``never`` and ``always`` do not look at the scores.
        gate: Further fields of the promotion policy, such as ``{"min_dice": 0.7}``.
        tolerance_mm: Distance in mm up to which a surface counts as right in the NSD: one number, or numbers by label
            name; labels that are not named have 1.0.
        recipe: Any string, which is stored in the card.
        outlets: Further assets to update whenever the task succeeds.
        kwargs: See :class:`NnunetOperator`.
    """

    params_class = FindBestParams
    python_classes = ("trainer",)
    template_fields = templated(FindBestParams)
    default_pool = GPU_POOL
    judged_together = ("folds", "promote")
    ui_color = "#fce8e6"

    def __init__(
        self,
        *,
        dataset: str | int | XComArg,
        model: str | XComArg | None = None,
        configurations: list[str] | str | XComArg = (),  # type: ignore[assignment]
        folds: list[int | str] | str | XComArg = (0, 1, 2, 3, 4),  # type: ignore[assignment]
        trainer: str | XComArg = "nnUNetTrainer",
        plans: str | XComArg = "nnUNetPlans",
        ensembles: bool | str | XComArg = True,
        repair: bool | str | XComArg = True,
        promote: str | XComArg = "if_better",
        gate: dict[str, Any] | str | XComArg | None = None,
        tolerance_mm: float | dict[str, float] | str | XComArg = 1.0,
        recipe: str | XComArg | None = None,
        num_gpus: int | str | XComArg = 1,
        pool: str = GPU_POOL,
        outlets: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_gpus=num_gpus, pool=pool, outlets=[*as_list(outlets), PROMOTED], **kwargs)
        self.dataset = dataset
        self.model = model
        self.configurations = configurations
        self.folds = folds
        self.trainer = trainer
        self.plans = plans
        self.ensembles = ensembles
        self.repair = repair
        self.promote = promote
        self.gate = {} if gate is None else gate
        self.tolerance_mm = tolerance_mm
        self.recipe = recipe
        self.check_fields()

    def result_ready(self, context: Context, result: dict[str, Any]) -> None:
        """Send the asset event if the model was promoted."""
        model_promoted(context, FindBestResult.from_json(result))
