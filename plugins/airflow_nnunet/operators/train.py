"""Operator of the step ``train``, which trains one fold of one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_nnunet.operators.base import NnunetOperator
from airflow_nnunet.operators.specification import templated
from airflow_nnunet.settings.pool_names import GPU_POOL
from nnunet_jobs.contract.steps.params import TrainParams

if TYPE_CHECKING:
    from airflow.sdk import XComArg


class TrainFoldOperator(NnunetOperator):
    """Train one fold of one configuration. A retry continues from the newest verified checkpoint; a finished fold is
    kept.

    All fields are templates. Map it over folds and configurations with ``partial(...).expand_kwargs(...)``. Returns
    ``model``, ``path``, ``dice`` and ``dice_per_label`` of the fold's validation, ``epochs`` and ``resumed_from``.

    Args:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        configuration: Configuration of the plans.
        fold: Number of the fold, from 0, or ``all``.
        version: Preprocessed version from PreprocessOperator's result; the current one when empty.
        trainer: Name of any trainer class of nnU-Net or of your own.
        plans: Name of the plans.
        epochs: Number of epochs; the trainer's own when empty.
        iterations: Training iterations in an epoch; the trainer's own when empty.
        val_iterations: Validation iterations in an epoch; the trainer's own when empty.
        optimizer: ``sgd`` or ``adamw``; the trainer's own when empty.
        initial_lr: Initial learning rate of the polynomial schedule.
        mirroring: False trains and predicts without mirroring; the trainer decides when empty.
        pretrained: Checkpoint file or model id from which to fine-tune.
        npz: Whether to save validation probabilities, which ensembles need.
        checkpoint_every: Epochs between verified checkpoints.
        early_stop: Stop after this many epochs without a better smoothed Dice.
        seed: Seed of the training; random when empty.
        plots: Whether to write nnU-Net's progress.png after each epoch.
        num_gpus: Number of GPUs to train on.
        kwargs: See :class:`NnunetOperator`.
    """

    params_class = TrainParams
    python_classes = ("trainer",)
    template_fields = templated(TrainParams)
    default_pool = GPU_POOL
    ui_color = "#fef3e0"

    def __init__(
        self,
        *,
        dataset: str | int | XComArg,
        configuration: str | XComArg,
        fold: int | str | XComArg,
        version: str | XComArg | None = None,
        trainer: str | XComArg = "nnUNetTrainer",
        plans: str | XComArg = "nnUNetPlans",
        epochs: int | str | XComArg | None = None,
        iterations: int | str | XComArg | None = None,
        val_iterations: int | str | XComArg | None = None,
        optimizer: str | XComArg | None = None,
        initial_lr: float | str | XComArg | None = None,
        mirroring: bool | str | XComArg | None = None,
        pretrained: str | XComArg | None = None,
        npz: bool | str | XComArg = False,
        checkpoint_every: int | str | XComArg = 1,
        early_stop: int | str | XComArg | None = None,
        seed: int | str | XComArg | None = None,
        plots: bool | str | XComArg = False,
        num_gpus: int | str | XComArg = 1,
        pool: str = GPU_POOL,
        map_index_template: str | None = "{{ task.configuration }} / fold {{ task.fold }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_gpus=num_gpus, pool=pool, map_index_template=map_index_template, **kwargs)
        self.dataset = dataset
        self.configuration = configuration
        self.fold = fold
        self.version = version
        self.trainer = trainer
        self.plans = plans
        self.epochs = epochs
        self.iterations = iterations
        self.val_iterations = val_iterations
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.mirroring = mirroring
        self.pretrained = pretrained
        self.npz = npz
        self.checkpoint_every = checkpoint_every
        self.early_stop = early_stop
        self.seed = seed
        self.plots = plots
        self.check_fields()
