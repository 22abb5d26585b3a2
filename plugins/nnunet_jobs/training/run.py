"""Holds the trainer layer's state of a job, makes the requested optimizer, and reports after each epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, FailureClass
from nnunet_jobs.contract.steps.params import TrainParams


class Diverged(Exception):
    """Loss or weights became NaN or infinite."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Holds what the layer needs of the job, and what it keeps between two hooks.

    Attributes:
        identity: Model, configuration and fold; written into every checkpoint, and compared when one is resumed.
        losses: Losses of the current epoch's iterations.
        resumed: Number of these losses from an earlier attempt.
        iterations: Iterations of a whole epoch.
        nans: Number of consecutive losses that are NaN.
    """

    params: TrainParams
    context: StepContext
    identity: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    resumed: int = 0
    iterations: int = 0
    nans: int = 0
    rolled_back: bool = False
    in_epoch_end: bool = False
    latest_due: bool = False
    best_saved: bool = False


@contextmanager
def refused_by_name(trainer: str, configuration: str) -> Iterator[None]:
    """Turn the error of a trainer class that cannot be set up into a ConfigError, since a retry would fail in the same way.

    Args:
        trainer: Name of the class.
        configuration: Configuration to train.

    Raises:
        ConfigError: The class cannot be set up; the message has its error.
    """
    try:
        yield
    except Exception as error:
        words = str(error).strip() or type(error).__name__
        of_gpu = any(word in words for word in ("CUDA", "cuDNN", "NCCL"))  # may be temporary
        if classify(error) is not FailureClass.BUG or isinstance(error, Diverged) or of_gpu:
            raise
        raise ConfigError(
            field="trainer",
            value=trainer,
            problem=f"cannot train configuration {configuration} here: {type(error).__name__}: {words.splitlines()[0]}",
            fix="install what it asks for, or choose another trainer or configuration",
        ) from error


def make_optimizer(trainer: Any, name: str) -> tuple[Any, Any]:
    """Make the optimizer ``sgd`` or ``adamw`` and nnU-Net's polynomial schedule, with the settings of nnU-Net's own trainers."""
    import torch
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    weights, decay = trainer.network.parameters(), trainer.weight_decay
    optimizer: Any
    if name == "adamw":  # as in nnUNetTrainerAdam
        optimizer = torch.optim.AdamW(weights, lr=trainer.initial_lr, weight_decay=decay, amsgrad=True)
    else:
        optimizer = torch.optim.SGD(weights, trainer.initial_lr, weight_decay=decay, momentum=0.99, nesterov=True)
    return optimizer, PolyLRScheduler(optimizer, trainer.initial_lr, trainer.num_epochs)


def smoothed(dice: Sequence[float]) -> list[float]:
    """Return nnU-Net's running mean of the epochs' Dice. An undefined epoch (NaN: no label in its patches) does not change it."""
    found: list[float] = []
    for value in dice:
        before = found[-1] if found else math.nan
        if math.isnan(before) or math.isnan(value):
            found.append(before if math.isnan(value) else value)
        else:
            found.append(before * 0.9 + 0.1 * value)
    return found


def epochs_without_better(ema: Sequence[float]) -> int:
    """Return the number of epochs since the smoothed Dice was highest, for early stopping, without undefined epochs before it."""
    if not ema or all(map(math.isnan, ema)):
        return 0
    best = max(value for value in ema if not math.isnan(value))
    return len(ema) - 1 - [*ema].index(best)


def report(trainer: Any, context: StepContext) -> None:
    """Report the epoch that has just ended: losses, Dice (smoothed and of the epoch), seconds, time left, GPU memory in MiB."""
    import torch

    value = trainer.logger.get_value
    starts, ends = value("epoch_start_timestamps", None), value("epoch_end_timestamps", None)
    seconds = [end - start for start, end in zip(starts, ends, strict=True)]
    memory = {"gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)} if trainer.device.type == "cuda" else {}
    context.progress(
        "train",
        done=trainer.current_epoch,
        total=trainer.num_epochs,
        train_loss=float(value("train_losses", -1)),
        val_loss=float(value("val_losses", -1)),
        dice=float(value("ema_fg_dice", -1)),
        dice_epoch=float(value("mean_fg_dice", -1)),
        lr=float(value("lrs", -1)),
        epoch_s=round(seconds[-1], 2),
        eta_s=round(statistics.median(seconds[-10:]) * (trainer.num_epochs - trainer.current_epoch), 1),
        **memory,
    )
