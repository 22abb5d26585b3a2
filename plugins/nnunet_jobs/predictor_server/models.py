"""Keeps verified models in memory, removes the least recently used ones, and replaces a model after a promotion."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import DataError, JobError
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.model import SelectedModel, resolve_model
from nnunet_jobs.prediction.predictor import Predictor
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.reading import ImageReading
from nnunet_jobs.prediction.review import Review
from nnunet_jobs.prediction.settings import Settings
from nnunet_jobs.training import checkpoint as checkpoints

log = logging.getLogger("nnunet_jobs")


class NoRoom(Exception):
    """A model that is neither promoted nor served by name does not fit beside those in memory."""


class WarmModels:
    """Holds predictors by dataset and model, in the order of their last use.

    The promoted models, and those named at the start, may displace others from memory. Any other model that a request names is a
    guest: it is loaded if there is room, and is removed first.

    Args:
        context: Device and cores of the server.
        settings: How to predict.
        limit_mib: For the weights of all models together; the one in use always stays.
        reading: See :class:`Predictor`.
        served: Dataset and model id of models to serve beside promoted ones.
    """

    def __init__(
        self,
        workspace: Workspace,
        context: StepContext,
        settings: Settings,
        *,
        limit_mib: int,
        reading: ImageReading,
        served: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.workspace = workspace
        self.limit_bytes = limit_mib << 20
        self.loads = 0
        self._context, self._settings, self._reading = context, settings, reading
        self._served = frozenset((workspace.resolve_dataset(dataset), model) for dataset, model in served)
        self._warm: OrderedDict[tuple[str, str], Predictor] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._current: dict[str, str] = {}
        self._problems: dict[str, str] = {}

    def get(self, dataset: str | int, model: str | None = None) -> Predictor:
        """The predictor of a named model, or of the promoted one as of the last :meth:`refresh`; loaded when it is not in memory.

        Raises:
            ConfigError: No such dataset or model, or nothing is promoted.
            DataError: The model's files are damaged.
            NoRoom: The named model is a guest and does not fit.
        """
        name = self.workspace.resolve_dataset(dataset)
        with self._lock:
            current = self._current.get(name)
            known = model or current
            if known and (name, known) in self._warm:
                self._warm.move_to_end((name, known))
                return self._warm[name, known]
        if model is not None:
            return self._load(resolve_model(self.workspace, name, model), owner=self._may_push(name, model))
        try:
            predictor = self._load(resolve_model(self.workspace, name, None), owner=True)
        except Exception as error:
            if current is None or current == self.workspace.champion(name):
                raise
            log.error("%s: the promoted model cannot be loaded, %s goes on answering: %s", name, current, error)
            return self._load(resolve_model(self.workspace, name, current), owner=True)
        with self._lock:
            self._current[name] = predictor.model.model
        return predictor

    def refresh(self) -> None:
        """Load what was promoted since for the datasets in use; until it is in memory the earlier model answers.

        Where both do not fit, the earlier one leaves first, and requests wait for the new one. What keeps one dataset's model from being
        loaded, of whatever kind, is logged and kept in :attr:`problems`, and the others go on.
        """
        with self._lock:
            current = dict(self._current)
        for name, used in current.items():
            try:
                promoted = self.workspace.champion(name)
                if promoted and promoted != used:
                    self._load(resolve_model(self.workspace, name, promoted), owner=True)
                    with self._lock:
                        self._current[name] = promoted
                    log.info("%s: %s answers from now on, before it %s", name, promoted, used)
                self._problems.pop(name, None)
            except Exception as error:
                words = f"the newly promoted model cannot be loaded, {used} goes on answering"
                told = f"{words} ({classify(error)}; the server's log has the reason)"  # its text may name the server's folders
                if self._problems.get(name) != told:  # once, not at every look
                    log.error("%s: %s: %s", name, words, error, exc_info=not isinstance(error, JobError | OSError))
                self._problems[name] = told

    @property
    def problems(self) -> dict[str, str]:
        """Map each dataset to the reason why its promoted model cannot be loaded; empty if there is none."""
        return dict(self._problems)

    def warm(self) -> dict[tuple[str, str], int]:
        """Map dataset and model to bytes of weights, the least recently used first."""
        with self._lock:
            return {key: predictor.memory_bytes for key, predictor in self._warm.items()}

    def current(self) -> dict[str, str]:
        """Map each dataset to the model that answers for it."""
        with self._lock:
            return dict(self._current)

    def _may_push(self, name: str, model: str) -> bool:
        return (name, model) in self._served or self.workspace.champion(name) == model

    def _load(self, model: SelectedModel, *, owner: bool) -> Predictor:
        """Load a model. ``owner``: it may push others out of memory."""
        key = (model.dataset, model.model)
        with self._loading:  # one at a time: several at once would only share the disk, and might not fit into memory
            with self._lock:
                if key in self._warm:
                    self._warm.move_to_end(key)
                    return self._warm[key]
            self._make_room(model, owner=owner)
            review = Review(Expected.of(model))
            predictor = Predictor(model, self._context, self._settings, reading=self._reading, review=review)
            self.loads += 1
            with self._lock:
                self._warm[key] = predictor
                self._trim(key)
            log.info("%s of %s is in memory, %d MiB", model.model, model.dataset, predictor.memory_bytes >> 20)
            return predictor

    def _make_room(self, model: SelectedModel, *, owner: bool) -> None:
        """Before a model is loaded: let others go where it would not fit beside them.

        Raises:
            NoRoom: It is a guest.
            DataError: Its files are damaged, which is known before another model leaves for it.
        """
        with self._lock:
            total = sum(predictor.memory_bytes for predictor in self._warm.values())
        if total + most_bytes(model) <= self.limit_bytes or total + (needs := expected_bytes(model)) <= self.limit_bytes:
            return
        if not owner:
            raise NoRoom(f"{model.model} is not promoted and does not fit beside the models in memory; name it with --model to serve it")
        for stage in model.stages():
            for path in (stage.folder / "plans.json", stage.folder / "dataset.json", *stage.checkpoints()):
                model.verify(path)
        with self._lock:
            for key in self._leaving():
                if total + needs <= self.limit_bytes:
                    break
                total -= self._let_go(key)
        if self._context.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _trim(self, kept: tuple[str, str]) -> None:
        """After a model was loaded: the true sizes are known."""
        total = sum(predictor.memory_bytes for predictor in self._warm.values())
        for key in self._leaving():
            if total <= self.limit_bytes:
                break
            if key != kept:
                total -= self._let_go(key)

    def _leaving(self) -> list[tuple[str, str]]:
        """In the order in which they leave: guests first, then the least recently used."""
        owners = {*self._served, *self._current.items()}
        return sorted(self._warm, key=lambda key: key in owners)

    def _let_go(self, key: tuple[str, str]) -> int:
        """Bytes that are free now. A model that a request still uses leaves memory with that request."""
        log.info("%s of %s leaves memory for another model", key[1], key[0])
        return self._warm.pop(key).memory_bytes


def most_bytes(model: SelectedModel) -> int:
    """What a model's weights take at most, from the sizes of its files: checkpoints mostly hold the optimizer's state beside them."""
    sizes = [[path.stat().st_size for path in stage.checkpoints() if path.is_file()] for stage in model.stages()]
    return sum(sum(of_stage) + max(of_stage, default=0) for of_stage in sizes)


def expected_bytes(model: SelectedModel) -> int:
    """What a model's weights will take: of each stage all folds, and one more on the device.

    Raises:
        DataError: A checkpoint is missing or cannot be read.
    """
    total = 0
    for stage in model.stages():
        path = stage.checkpoints()[0]
        model.verify(path)
        try:
            weights = checkpoints.load(path, mapped=True)["network_weights"]
        except checkpoints.UnsafeCheckpoint as error:
            raise DataError(f"{error}; restore the file or train the fold again") from error
        total += (len(stage.folds) + 1) * sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in weights.values())
    return total


def served_datasets(workspace: Workspace) -> tuple[str, ...]:
    """Return the datasets that have a promoted model."""
    return tuple(name for name in workspace.datasets().values() if workspace.champion(name))
