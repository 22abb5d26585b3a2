"""Defines the settings that a segmentation depends on. Every runner imports this at its start, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nnunet_jobs.contract.storage.files import content_hash
from nnunet_jobs.prediction.model import SelectedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the prediction that change the result; ``probabilities`` only adds files.

    ``fast``: names from :data:`~nnunet_jobs.contract.steps.params.FAST`; without any, the result is identical to stock nnU-Net's.
    """

    mirroring: bool = True
    step_size: float = 0.5
    postprocessing: bool = True
    probabilities: bool = False
    fast: tuple[str, ...] = ()


def settings_key(model: SelectedModel, settings: Settings) -> str:
    """Return the hash of how a segmentation is made: model, folds and settings."""
    relevant = {name: value for name, value in asdict(settings).items() if name != "probabilities"}
    if not relevant["fast"]:
        del relevant["fast"]  # keeps the keys of predictions made before the fast mode existed
    folds = [[stage.configuration, list(stage.folds)] for stage in model.stages()]
    return content_hash({"model": model.hash, "folds": folds, "settings": relevant}, length=32)


def case_key(model: SelectedModel, settings: Settings, images: Sequence[str]) -> str:
    """Return the hash of all that a segmentation depends on: :func:`settings_key` and the images' sha256."""
    return content_hash([settings_key(model, settings), list(images)], length=32)
