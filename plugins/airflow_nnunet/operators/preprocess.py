"""Operator of the step ``preprocess``, which fingerprints, plans, preprocesses and splits registered datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_nnunet.operators.base import NnunetOperator
from airflow_nnunet.operators.specification import templated
from nnunet_jobs.contract.steps.params import PreprocessParams

if TYPE_CHECKING:
    from airflow.sdk import XComArg


class PreprocessOperator(NnunetOperator):
    """Bring the preprocessed version of one or several datasets up to date; only new or changed cases are computed.

    All fields are templates. Returns ``version`` and ``plans`` of the first dataset and one entry in ``datasets`` for
    each. A version never changes, so trainings on an older one are not disturbed.

    Args:
        datasets: Dataset ids or full names.
        configurations: Configurations of the plans, custom ones included.
        planner: Name of any nnU-Net experiment planner class.
        gpu_memory_gb: The planner's GPU memory target in GB.
        plans: Name of the plans; the planner's own when empty.
        custom_configurations: Plans entry of each name, such as ``{"2d_tiny": {"inherits_from": "2d"}}``.
        replan: ``auto`` keeps plans while they are valid, ``always`` plans again, ``never`` keeps them in any case.
        folds: Number of cross-validation splits.
        seed: Seed of the splits.
        processes: Number of cases at once; 0 chooses it by cores and memory.
        kwargs: See :class:`NnunetOperator`.
    """

    params_class = PreprocessParams
    python_classes = ("planner",)
    template_fields = templated(PreprocessParams)
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        datasets: list[str | int] | str | XComArg,
        configurations: list[str] | str | XComArg = ("2d", "3d_fullres"),  # type: ignore[assignment]
        planner: str | XComArg = "ExperimentPlanner",
        gpu_memory_gb: float | str | XComArg | None = None,
        plans: str | XComArg | None = None,
        custom_configurations: dict[str, Any] | str | XComArg | None = None,
        replan: str | XComArg = "auto",
        folds: int | str | XComArg = 5,
        seed: int | str | XComArg = 12345,
        processes: int | str | XComArg = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.datasets = datasets
        self.configurations = configurations
        self.planner = planner
        self.gpu_memory_gb = gpu_memory_gb
        self.plans = plans
        self.custom_configurations = {} if custom_configurations is None else custom_configurations
        self.replan = replan
        self.folds = folds
        self.seed = seed
        self.processes = processes
        self.check_fields()
