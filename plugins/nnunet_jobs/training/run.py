"""What the trainer layer keeps of the job it runs in, the optimizer a job may ask for, and the report after each epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError, FailureClass, classify
from nnunet_jobs.contract.steps.params import TrainParams


class Diverged(Exception):
    """Loss or weights became NaN or infinite."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What the layer needs to know of the job, and what it keeps between two hooks.

    Attributes:
        identity: Model, configuration and fold; written into every checkpoint and demanded of every one that is
            resumed.
        losses: Losses of the iterations of the epoch under way.
        resumed: How many of them an earlier attempt did.
        iterations: Iterations of a whole epoch.
        nans: Losses in a row that are not numbers.
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
    """Name a trainer class where it cannot be set up: the same class fails the same way tomorrow, so it is no bug to be retried.

    Args:
        trainer: Name of the class.
        configuration: Configuration that it was to train.

    Raises:
        ConfigError: With what the class says.
    """
    try:
        yield
    except Exception as error:
        words = str(error).strip() or type(error).__name__
        of_gpu = any(word in words for word in ("CUDA", "cuDNN", "NCCL"))  # may be gone tomorrow
        if classify(error) is not FailureClass.BUG or isinstance(error, Diverged) or of_gpu:
            raise
        raise ConfigError(
            field="trainer",
            value=trainer,
            problem=f"cannot train configuration {configuration} here: {type(error).__name__}: {words.splitlines()[0]}",
            fix="install what it asks for, or choose another trainer or configuration",
        ) from error


def make_optimizer(trainer: Any, name: str) -> tuple[Any, Any]:
    """(optimizer, nnU-Net's polynomial schedule) for ``sgd`` or ``adamw`` with the settings that nnU-Net's own trainers use."""
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
    """nnU-Net's running mean of the epochs' Dice. An undefined epoch (NaN: no label in its patches) leaves the mean where it was."""
    found: list[float] = []
    for value in dice:
        before = found[-1] if found else math.nan
        if math.isnan(before) or math.isnan(value):
            found.append(before if math.isnan(value) else value)
        else:
            found.append(before * 0.9 + 0.1 * value)
    return found


def epochs_without_better(ema: Sequence[float]) -> int:
    """Epochs since the smoothed Dice was highest, for early stopping; undefined epochs before it count as none."""
    if not ema or all(map(math.isnan, ema)):
        return 0
    best = max(value for value in ema if not math.isnan(value))
    return len(ema) - 1 - [*ema].index(best)


def report(trainer: Any, context: StepContext) -> None:
    """One record of the epoch that has just ended: losses, Dice (smoothed and of the epoch), seconds, time left, GPU memory in MiB."""
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
