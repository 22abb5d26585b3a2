"""Where a training goes on after a stop, a kill or a divergence: at the very iteration, and ending with every epoch done once."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.training import checkpoint
from nnunet_jobs.training.checkpoint import FINAL, LATEST, PREVIOUS
from support.training import Training, Warm, phantom_workspace

pytestmark = pytest.mark.training

# A user's trainer classes. Each does its harm once in a fold's life where it says so; ``note`` counts over all attempts.
TRAINERS = '''
import os, signal, time
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Noting(nnUNetTrainer):
    """Notes every iteration, and stops or poisons itself where a file says so."""

    def place(self, name):
        return os.path.join(self.output_folder, name)

    def note(self, name):
        with open(self.place(name), "a") as file:
            file.write("x")
        return os.path.getsize(self.place(name))

    def wanted(self, what):
        """(iteration counted over all attempts) at which to do something; the file goes when it is done."""
        path = os.path.join(os.path.dirname(__file__), what)
        return int(open(path).read()) if os.path.exists(path) else None

    def once(self, what, count):
        if self.wanted(what) == count:
            os.remove(os.path.join(os.path.dirname(__file__), what))
            return True
        return False

    def train_step(self, batch):
        output = super().train_step(batch)
        count = self.note("iterations")
        if self.once("stop", count):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.once("poison", count):
            with torch.no_grad():
                for weight in self.network.parameters():
                    weight.fill_(float("nan"))
        return output

    def validation_step(self, batch):
        output = super().validation_step(batch)
        if self.once("stop_in_validation", self.note("validations")):
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    def on_train_end(self):
        super().on_train_end()
        if self.once("kill_at_end", 1):
            os.kill(os.getpid(), signal.SIGKILL)





class Falling(Noting):
    """The Dice falls from epoch to epoch."""

    def on_validation_epoch_end(self, outputs):
        super().on_validation_epoch_end(outputs)
        self.logger.local_logger.my_fantastic_logging["ema_fg_dice"][-1] = 1 / (2 + self.current_epoch)

    def on_epoch_start(self):
        super().on_epoch_start()
        if self.current_epoch and self.once("kill_at_epoch", self.current_epoch):
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def phantom(tmp_path: Path) -> Workspace:
    """The preprocessed phantom with results, jobs and trainer classes of this test alone."""
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "chaos.py").write_text(TRAINERS)
    return with_roots(tmp_path, trainer_paths=[str(trainers)])


def with_roots(folder: Path, **changes: Any) -> Workspace:
    places = {"results": str(folder / "results"), "jobs": str(folder / "jobs"), **changes}
    return Workspace.from_json({**phantom_workspace().to_json(), **places})


def at(phantom: Workspace, what: str, count: int) -> None:
    """Have the trainer do something at its ``count``-th time."""
    (Path(phantom.trainer_paths[0]) / what).write_text(str(count))


def fold_of(phantom: Workspace) -> Path:
    return next(Path(phantom.results).glob(".versions/*/*/*/fold_0"))


def noted(phantom: Workspace, what: str) -> int:
    return (fold_of(phantom) / what).stat().st_size


def log_of(training: Training) -> str:
    """What it said; it has ended."""
    return training.job.log.read_text()


def resumed(training: Training) -> tuple[int, int]:
    """(epoch, iteration) that it went on with."""
    found = re.search(r"resuming from \S+: epoch (\d+), iteration (\d+)", log_of(training))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def assert_whole(result: dict[str, Any], epochs: int) -> None:
    """The final checkpoint has every epoch once, and finite numbers."""
    import torch

    assert result["epochs"] == epochs
    final = checkpoint.load(Path(result["path"]) / FINAL)
    assert {len(values) for values in final["logging"].values()} == {epochs}
    assert all(bool(torch.isfinite(weight).all()) for weight in final["network_weights"].values())
    names = {path.name for path in Path(result["path"]).iterdir()}
    assert not names & {LATEST, PREVIOUS}
    assert not [name for name in names if name.startswith(".")]


def test_killed_after_the_final_checkpoint_only_validates(warm: Warm, phantom: Workspace) -> None:
    at(phantom, "kill_at_end", 1)
    assert warm.train(phantom, trainer="Noting", epochs=2).wait() == {"signal": signal.SIGKILL}
    result = warm.train(phantom, trainer="Noting", epochs=2).result()
    assert_whole(result, 2)
    assert noted(phantom, "iterations") == 2 * 4


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_sigterm_loses_no_iteration(warm: Warm, phantom: Workspace, stop: int) -> None:
    at(phantom, "stop", stop)
    first = warm.train(phantom, trainer="Noting", epochs=3)
    failure = first.failure()
    assert failure.failure_class is FailureClass.INTERRUPTED
    second = warm.train(phantom, trainer="Noting", epochs=3)
    assert_whole(second.result(), 3)
    epoch, iteration = resumed(second)
    assert 4 * epoch + iteration == stop
    assert noted(phantom, "iterations") == 3 * 4


def test_sigterm_twice_in_one_epoch(warm: Warm, phantom: Workspace) -> None:
    for stop in (5, 7):
        at(phantom, "stop", stop)
        assert warm.train(phantom, trainer="Noting", epochs=2).failure().failure_class is FailureClass.INTERRUPTED
    last = warm.train(phantom, trainer="Noting", epochs=2)
    assert_whole(last.result(), 2)
    assert resumed(last) == (1, 3)
    assert noted(phantom, "iterations") == 2 * 4


def test_sigterm_while_an_epoch_validates_keeps_all_its_iterations(warm: Warm, phantom: Workspace) -> None:
    at(phantom, "stop_in_validation", 2)
    settings: dict[str, Any] = {"trainer": "Noting", "epochs": 2, "val_iterations": 4}
    assert warm.train(phantom, **settings).failure().failure_class is FailureClass.INTERRUPTED
    second = warm.train(phantom, **settings)
    assert_whole(second.result(), 2)
    assert resumed(second) == (0, 4)
    assert noted(phantom, "iterations") == 2 * 4


def test_nan_weights_once_go_back_to_the_last_checkpoint(warm: Warm, phantom: Workspace) -> None:
    at(phantom, "poison", 6)
    training = warm.train(phantom, trainer="Noting", epochs=3)
    assert_whole(training.result(), 3)
    assert "trying again from" in log_of(training)
    assert noted(phantom, "iterations") == 3 * 4 + 4  # epoch 1 was done twice


def test_nan_after_a_resume_within_an_epoch_shortens_no_later_epoch(warm: Warm, phantom: Workspace) -> None:
    settings: dict[str, Any] = {"trainer": "Noting", "epochs": 3, "iterations": 10}
    at(phantom, "stop", 13)
    assert warm.train(phantom, **settings).failure().failure_class is FailureClass.INTERRUPTED
    at(phantom, "poison", 14)
    training = warm.train(phantom, **settings)
    assert_whole(training.result(), 3)
    assert "trying again from" in log_of(training)
    losses_seen = noted(phantom, "iterations")
    assert losses_seen - 30 in range(1, 8)  # only the poisoned ones were done again


def test_early_stop_stays_where_it_was_when_it_is_killed_at_the_end(warm: Warm, phantom: Workspace) -> None:
    settings: dict[str, Any] = {"trainer": "Falling", "epochs": 10, "early_stop": 2}
    at(phantom, "kill_at_end", 1)
    assert warm.train(phantom, **settings).wait() == {"signal": signal.SIGKILL}
    assert_whole(warm.train(phantom, **settings).result(), 3)


def test_early_stop_stays_where_it_was_when_the_final_checkpoint_is_lost(warm: Warm, phantom: Workspace) -> None:
    settings: dict[str, Any] = {"trainer": "Falling", "epochs": 10, "early_stop": 2}
    at(phantom, "kill_at_end", 1)
    assert warm.train(phantom, **settings).wait() == {"signal": signal.SIGKILL}
    final = fold_of(phantom) / FINAL
    os.replace(final, final.with_name(LATEST))  # as if killed just before it was written
    assert_whole(warm.train(phantom, **settings).result(), 3)
    assert noted(phantom, "iterations") == 3 * 4


def test_checkpoints_come_as_often_as_asked(warm: Warm, phantom: Workspace) -> None:
    settings: dict[str, Any] = {"trainer": "Falling", "epochs": 6, "checkpoint_every": 2}
    at(phantom, "kill_at_epoch", 3)
    assert warm.train(phantom, **settings).wait() == {"signal": signal.SIGKILL}
    second = warm.train(phantom, **settings)
    assert_whole(second.result(), 6)
    assert resumed(second) == (2, 0)
