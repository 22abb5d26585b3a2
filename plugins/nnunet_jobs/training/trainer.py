"""Adds a layer to any nnU-Net trainer class: overrides, verified checkpoints, exact resume, stopping, metrics, divergence.

The layered class keeps the name of the class below it, so folders and checkpoints are stock and plain ``nnUNetv2_predict``
reads the model without this package. It extends nnU-Net's own methods and replaces only the final validation.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import Bug, ConfigError, Interrupted
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.withdrawals import require_none_withdrawn
from nnunet_jobs.training import checkpoint
from nnunet_jobs.training.checkpoint import BEST, IDENTITY, LATEST, PREVIOUS, Found
from nnunet_jobs.training.run import Diverged, Run, epochs_without_better, make_optimizer, refused_by_name, report, smoothed

log = logging.getLogger("nnunet_jobs.training")

# One bad batch may overflow under AMP and is skipped by the scaler; this many in a row never recover.
NAN_LIMIT = 5


class _EarlyStop(Exception):
    """The smoothed Dice has not improved for long enough."""


class Layer:
    """The mixin that :func:`layered` puts before a trainer class. It has no ``__init__``, since nnU-Net's inspects its signature."""

    _run: Run
    # Set by the class below.
    network: Any
    logger: Any
    optimizer: Any
    lr_scheduler: Any
    loss: Any
    dataloader_train: Any
    dataloader_val: Any
    my_init_kwargs: dict[str, Any]
    configuration_manager: Any
    configuration_name: str
    output_folder: str
    preprocessed_dataset_folder_base: str
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    current_epoch: int
    save_every: int
    local_rank: int
    is_ddp: bool
    disable_checkpointing: bool
    inference_allowed_mirroring_axes: Any
    _best_ema: float | None
    device: Any
    print_to_log_file: Callable[..., None]

    # --- settings -----------------------------------------------------------------------------------------------
    def apply(self, run: Run) -> None:
        """Replace the class's settings with the job's. Called once, before ``initialize``."""
        self._run = run
        for attribute, value in (
            ("num_epochs", run.params.epochs),
            ("num_iterations_per_epoch", run.params.iterations),
            ("num_val_iterations_per_epoch", run.params.val_iterations),
            ("initial_lr", run.params.initial_lr),
            ("save_every", run.params.checkpoint_every),
        ):
            if value is not None:
                setattr(self, attribute, value)
        run.iterations = self.num_iterations_per_epoch
        self.my_init_kwargs[IDENTITY] = dict(run.identity)
        if not run.params.plots:
            self.logger.plot_progress_png = lambda _folder: None  # 0.8 to 1.3 s an epoch

    def initialize(self, *given: Any, **named: Any) -> None:
        """Initialize the class.

        Raises:
            ConfigError: The class cannot be set up for this configuration, or lacks a package.
        """
        with refused_by_name(type(self).__name__, self.configuration_name):
            super().initialize(*given, **named)  # type: ignore[misc]
        weights = getattr(self.loss, "weight_factors", None)  # attribute of nnU-Net's DeepSupervisionWrapper
        if weights is not None and not np.all(np.isfinite(np.asarray(weights, dtype=float))):
            raise ConfigError(
                field="configuration",
                value=self.configuration_name,
                problem=("its network has fewer than three stages, with which the weights of deep supervision, and so the loss, are NaN"),
                fix="pad the images and preprocess them again, or train with trainer='nnUNetTrainerNoDeepSupervision'",
            )

    def configure_optimizers(self, *given: Any, **named: Any) -> Any:
        """Return the class's own optimizer, or the requested one with nnU-Net's polynomial schedule.

        Some classes pass the stage of the training as an argument, and call again when a stage begins. The requested optimizer
        is the same in all stages.
        """
        if self._run.params.optimizer is None:
            return super().configure_optimizers(*given, **named)  # type: ignore[misc]
        if self.optimizer is None:
            return make_optimizer(self, self._run.params.optimizer)
        return self.optimizer, self.lr_scheduler

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self, *given: Any, **named: Any) -> Any:  # noqa: N802 - nnU-Net's name
        """Switch mirroring on or off for augmentation and, through the checkpoint, for prediction."""
        settings = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size(*given, **named)  # type: ignore[misc]
        if self._run.params.mirroring is None:
            return settings
        rotation, dummy_2d, initial_patch_size, _ = settings
        axes = tuple(range(len(self.configuration_manager.patch_size))) if self._run.params.mirroring else None
        self.inference_allowed_mirroring_axes = axes
        return rotation, dummy_2d, initial_patch_size, axes

    # --- resuming -----------------------------------------------------------------------------------------------
    def restore(self, found: Found) -> None:
        """Continue from a verified checkpoint: weights, optimizer, logs, and the iteration within the epoch."""
        record = found.data["init_args"][IDENTITY]
        with checkpoint.only_safe_loading():  # nnU-Net's own method accepts only a file name
            self.load_checkpoint(str(found.path))  # type: ignore[attr-defined]
        for values in self.logger.local_logger.my_fantastic_logging.values():
            del values[self.current_epoch :]  # an interrupted epoch has logged its start already
        self._run.losses = list(record["losses"])
        self._run.resumed = len(self._run.losses)

    # --- nnU-Net's hooks ----------------------------------------------------------------------------------------
    def run_training(self, *given: Any, **named: Any) -> None:
        """Run nnU-Net's training; on the first divergence, return to the last verified checkpoint.

        Raises:
            Interrupted: The job is to stop; everything up to the last iteration is saved.
            Bug: Training diverged again, or before the first checkpoint.
        """
        while True:
            try:
                if self._no_better_for_long():  # stopped early, and killed before the final checkpoint
                    raise _EarlyStop
                super().run_training(*given, **named)  # type: ignore[misc]
            except _EarlyStop:
                self.on_train_end()
            except Diverged as error:
                self._roll_back(error)
                continue
            finally:
                self._end_workers()
            return

    def on_train_epoch_start(self, *given: Any, **named: Any) -> None:
        """Do only the remaining iterations of an epoch that an earlier attempt began."""
        super().on_train_epoch_start(*given, **named)  # type: ignore[misc]
        self.num_iterations_per_epoch = self._run.iterations - self._run.resumed

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]], *given: Any, **named: Any) -> None:
        """Give nnU-Net the losses of the whole epoch, those of an earlier attempt included."""
        resumed = self._run.losses[: self._run.resumed]
        if not train_outputs or set(train_outputs[0]) == {"loss"}:
            train_outputs = [{"loss": np.array(loss, dtype=np.float32)} for loss in resumed] + train_outputs
        self.num_iterations_per_epoch = self._run.iterations
        super().on_train_epoch_end(train_outputs, *given, **named)  # type: ignore[misc]

    def train_step(self, batch: dict[str, Any], *given: Any, **named: Any) -> dict[str, Any]:
        """Run one iteration, after checking for a stop request, and check its loss."""
        self._stop_or_go_on()
        first = not self.current_epoch and not self._run.losses  # an error here is the class's on this configuration, not of the training
        with refused_by_name(type(self).__name__, self.configuration_name) if first else nullcontext():
            output: dict[str, Any] = super().train_step(batch, *given, **named)  # type: ignore[misc]
        loss = float(np.mean(output["loss"]))
        self._run.losses.append(loss)
        self._run.nans = 0 if math.isfinite(loss) else self._run.nans + 1
        if not self.is_ddp and self._run.nans >= NAN_LIMIT:
            raise Diverged(f"the loss was not a number {NAN_LIMIT} times in a row in epoch {self.current_epoch}")
        self._run.context.beat()
        return output

    def validation_step(self, batch: dict[str, Any], *given: Any, **named: Any) -> dict[str, Any]:
        """Run one validation iteration; stopping here keeps all training iterations of the epoch."""
        self._stop_or_go_on()
        output: dict[str, Any] = super().validation_step(batch, *given, **named)  # type: ignore[misc]
        self._run.context.beat()
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]], *given: Any, **named: Any) -> None:
        """Keep nnU-Net's smoothed Dice a number after epochs whose validation patches had no label.

        The Dice of such an epoch is NaN, and nnU-Net's running mean would stay NaN, without best checkpoint and early stop.
        """
        with warnings.catch_warnings():  # 0 / 0 of a label that these patches lack is handled here
            warnings.filterwarnings("ignore", message="invalid value encountered in scalar divide", category=RuntimeWarning)
            warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
            super().on_validation_epoch_end(val_outputs, *given, **named)  # type: ignore[misc]
        values = self.logger.local_logger.my_fantastic_logging
        if any(map(math.isnan, values["mean_fg_dice"])):
            values["ema_fg_dice"][:] = smoothed(values["mean_fg_dice"])

    def on_epoch_end(self, *given: Any, **named: Any) -> None:
        """Save the checkpoint, report metrics, and stop early if due. A case withdrawn meanwhile ends the training.

        Raises:
            ConfigError: A case was withdrawn from the version.
        """
        run = self._run
        require_none_withdrawn(Path(self.preprocessed_dataset_folder_base))
        if not self._weights_finite():
            raise Diverged(f"the weights were not numbers at the end of epoch {self.current_epoch}")
        if self._best_ema is not None and math.isnan(self._best_ema):
            self._best_ema = None  # after epochs without a label, since no value is better than NaN
        run.losses, run.resumed = [], 0
        run.in_epoch_end, run.latest_due, run.best_saved = True, False, False
        try:
            super().on_epoch_end(*given, **named)  # type: ignore[misc]
        finally:
            run.in_epoch_end = False
        if run.latest_due and not (run.best_saved and checkpoint.link(self._path(BEST), self._path(LATEST))):
            self._save_before(self.current_epoch, LATEST)
        if self.local_rank == 0:
            report(self, run.context)
        if self._no_better_for_long():
            self.print_to_log_file(f"Early stop: no better smoothed Dice for {run.params.early_stop} epochs")
            raise _EarlyStop

    def on_train_end(self, *given: Any, **named: Any) -> None:
        """Save and verify the final checkpoint, then remove the running ones."""
        super().on_train_end(*given, **named)  # type: ignore[misc]
        self.remove_running()

    def remove_running(self) -> None:
        """Remove what only resuming needs, once the final checkpoint is verified."""
        if self.local_rank == 0:
            for name in (LATEST, PREVIOUS):
                self._path(name).unlink(missing_ok=True)

    def save_checkpoint(self, filename: str, *given: Any, **named: Any) -> None:
        """Save nnU-Net's checkpoint atomically and verify it. The latest waits until the best is known, so that both can be one file."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename, *given, **named)  # type: ignore[misc]
            return
        path, run = Path(filename), self._run
        if run.in_epoch_end and path.name == LATEST:
            run.latest_due = True
            return
        self.my_init_kwargs[IDENTITY] = {**run.identity, "losses": list(run.losses), "iteration": len(run.losses)}
        write = super().save_checkpoint  # type: ignore[misc]
        checkpoint.save(path, lambda temporary: write(str(temporary), *given, **named))
        run.best_saved = run.best_saved or path.name == BEST

    def perform_actual_validation(self, save_probabilities: bool = False, *_given: Any, **_named: Any) -> None:
        """Validate with threads instead of spawned processes; files and numbers are the same."""
        from nnunet_jobs.training.validation import validate

        validate(self, self._run.context, npz=save_probabilities)

    # --- private ------------------------------------------------------------------------------------------------
    def _path(self, name: str) -> Path:
        return Path(self.output_folder) / name

    def _save_before(self, epoch: int, name: str) -> None:
        """Save so that training resumes with ``epoch``; nnU-Net stores current_epoch + 1."""
        now, self.current_epoch = self.current_epoch, epoch - 1
        try:
            self.save_checkpoint(str(self._path(name)))
        finally:
            self.current_epoch = now

    def _stop_or_go_on(self) -> None:
        stop, diverged = self._run.context.stop.is_set(), self._run.nans >= NAN_LIMIT
        if self.is_ddp:  # all ranks must leave in the same iteration, or the others wait forever in a collective
            import torch
            from torch import distributed

            flags = torch.tensor([int(stop), int(diverged)], device=self.device)
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
            stop, diverged = (bool(flag) for flag in flags.tolist())
        if diverged:
            raise Diverged(f"the loss was not a number {NAN_LIMIT} times in a row in epoch {self.current_epoch}")
        if not stop:
            return
        done = len(self._run.losses)
        if self._weights_finite():
            self._save_before(self.current_epoch, LATEST)
            raise Interrupted(f"stopped on request in epoch {self.current_epoch} after iteration {done}, which is saved")
        raise Interrupted(f"stopped on request in epoch {self.current_epoch}; its weights are not numbers and were not saved")

    def _no_better_for_long(self) -> bool:
        patience, ema = self._run.params.early_stop, self.logger.get_value("ema_fg_dice", step=None)
        return patience is not None and epochs_without_better(ema) >= patience

    def _weights_finite(self) -> bool:
        import torch

        return all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters())

    def _roll_back(self, error: Diverged) -> None:
        fix = "lower initial_lr, or look for extreme intensities in the images"
        found = checkpoint.newest_verified(Path(self.output_folder), self._run.identity)
        if self._run.rolled_back or found is None:
            where = "again after going back to the last checkpoint" if found else "before the first checkpoint"
            raise Bug(f"training diverged {where}: {error}. Fix: {fix}") from error
        log.warning("training diverged: %s; trying again from %s (epoch %s)", error, found.path.name, found.epoch)
        self._run.rolled_back, self._run.nans = True, 0
        self.restore(found)

    def _end_workers(self) -> None:
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()


def layered(trainer: str) -> Any:
    """Return the named trainer class, found by nnU-Net's own lookup, with :class:`Layer` before it and under its own name."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    base = recursive_find_trainer_class_by_name(trainer)
    return type(base.__name__, (Layer, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def build(params: TrainParams, context: StepContext, *, dataset: str, identity: dict[str, Any], device: Any) -> Any:
    """Make a layered trainer of one fold, not yet initialized. nnU-Net's environment variables must be set."""
    from nnunet_jobs.contract.storage.files import read_json

    folder = Path(os.environ["nnUNet_preprocessed"]) / dataset  # noqa: SIM112 - nnU-Net's spelling
    plans = read_json(folder / f"{params.plans}.json")
    plans["continue_training"] = False  # only makes wandb continue; nnU-Net removes it again
    given = {"configuration": params.configuration, "fold": params.fold, "dataset_json": read_json(folder / "dataset.json")}
    with refused_by_name(params.trainer, params.configuration):
        trainer = layered(params.trainer)(plans=plans, device=device, **given)
    if trainer.disable_checkpointing:
        raise ConfigError(
            field="trainer",
            value=params.trainer,
            problem="keeps no checkpoint, so that nothing is left to predict with",
            fix="choose another",
        )
    trainer.apply(Run(params=params, context=context, identity=identity))
    return trainer
