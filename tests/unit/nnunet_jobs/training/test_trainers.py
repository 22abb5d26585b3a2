"""Every trainer class that nnU-Net ships under the layer: one epoch each, the slow ones at night, and those that cannot train by name."""

from __future__ import annotations

import importlib.util
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.liveness import read_counter
from nnunet_jobs.contract.storage.workspace import Workspace
from support.training import Warm, wait_for

pytestmark = pytest.mark.training

OWN: dict[str, Any] = {"epochs": 1, "iterations": 2, "optimizer": None, "mirroring": None}
IN_CI = ("nnUNetTrainer_warmup", "nnUNetTrainerDA5", "nnUNetTrainerCosAnneal", "nnUNetTrainerNoDeepSupervision", "nnUNetTrainerTopk10Loss")
# What each says in the message that refuses it. All others train.
REFUSED = {
    "AbstractPrimus": "NotImplementedError",
    **dict.fromkeys(("nnUNetTrainerBenchmark_5epochs", "nnUNetTrainerBenchmark_5epochs_noDataLoading"), "only works on GPU"),
    **dict.fromkeys(
        ("nnUNetTrainerAdan", "nnUNetTrainerAdan1en3", "nnUNetTrainerAdan3en4", "nnUNetTrainerAdan1en1", "nnUNetTrainerAdanCosAnneal"),
        "adan_pytorch",
    ),
}


def shipped() -> list[str]:
    """Names of nnU-Net's public trainer classes, from its source, since importing them takes seconds."""
    spec = importlib.util.find_spec("nnunetv2")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0], "training", "nnUNetTrainer")
    return sorted({name for path in root.rglob("*.py") for name in re.findall(r"^class ([A-Za-z]\w*)\(", path.read_text(), re.MULTILINE)})


@pytest.mark.parametrize("trainer", IN_CI)
def test_a_trainer_class_of_nnunet_trains_an_epoch(warm: Warm, phantom: Workspace, trainer: str) -> None:
    result = warm.train(phantom, trainer=trainer, **OWN).result()
    assert result["epochs"] == 1
    assert warm.read(result["path"]) == warm.read(result["path"]) | {"trainer_name": trainer, "epoch": 1, "finite": True}


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("trainer", [name for name in shipped() if name not in IN_CI])
def test_every_trainer_class_of_nnunet_trains_an_epoch_or_is_refused_by_name(warm: Warm, phantom: Workspace, trainer: str) -> None:
    """Primus needs volumes; the others take the small slices."""
    configuration = "3d_low" if "Primus" in trainer else "2d_micro"
    training = warm.train(phantom, trainer=trainer, **{**OWN, "iterations": 1, "configuration": configuration})
    if trainer in REFUSED:
        failure = training.failure()
        assert failure.failure_class is FailureClass.CONFIG
        assert f"trainer={trainer!r}" in failure.message
        assert REFUSED[trainer] in failure.message
    else:
        assert training.result()["epochs"] == 1


@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_a_class_with_stages_goes_on_where_it_was_stopped(warm: Warm, phantom: Workspace, optimizer: str | None) -> None:
    settings = {**OWN, "trainer": "nnUNetTrainer_warmup", "epochs": 2, "iterations": 30, "optimizer": optimizer, "initial_lr": 0.001}
    training = warm.train(phantom, **settings)
    wait_for(lambda: read_counter(training.job.progress) >= 5, what="some iterations")
    training.kill(signal.SIGTERM)
    assert training.failure().failure_class is FailureClass.INTERRUPTED
    result = warm.train(phantom, **settings).result()
    assert (result["epochs"], result["resumed_from"]) == (2, 0)
    told = warm.read(result["path"])
    assert told == told | {"epoch": 2, "logged": [2] * 8, "iteration": 0}
    assert told["steps"] == (60 if optimizer else None)  # the optimizer that a resume restored is the one that goes on
    if optimizer is None:
        assert told["lr"] == pytest.approx([0.001 / 50, 0.001 * 2 / 50])  # the class's own schedule: fifty epochs of warming up


def test_what_a_class_cannot_do_is_refused_by_its_name_and_not_retried(warm: Warm, phantom: Workspace) -> None:
    """A package that is not there, a network that does not take the configuration, a class that keeps nothing."""
    for trainer, words in (
        ("nnUNetTrainerAdan", "adan_pytorch"),
        ("nnUNetTrainerBenchmark_5epochs", "only works on GPU"),
        ("nnUNet_Primus_S_Trainer", "configuration 2d_micro"),
        ("KeepsNothing", "keeps no checkpoint"),
        ("BreaksAtOnce", "sizes do not fit"),
    ):
        failure = warm.train(phantom, trainer=trainer, **OWN).failure()
        assert failure.failure_class is FailureClass.CONFIG, failure
        assert f"trainer={trainer!r}" in failure.message
        assert words in failure.message
    broken = warm.train(phantom, trainer="BreaksLater", **{**OWN, "iterations": 4}).failure()
    assert broken.failure_class is FailureClass.BUG  # it had trained: this may pass
