"""Models in memory: loaded once, verified, the least recently used ones leave, a newly promoted one takes over when it is ready."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.workspace import Workspace
from nnunet_jobs.prediction.model import SelectedModel, resolve_model
from nnunet_jobs.prediction.predictor import Predictor
from nnunet_jobs.prediction.quality import Expected
from nnunet_jobs.prediction.reading import Reading
from nnunet_jobs.prediction.review import Review
from nnunet_jobs.prediction.settings import Settings

log = logging.getLogger("nnunet_jobs")


class WarmModels:
    """Predictors by dataset and model, in the order of their last use.

    Args:
        context: device and cores of the server. settings: how to predict. limit_mib: for the weights of all models together; the one
            in use always stays. reading: see :class:`Predictor`.
    """

    def __init__(self, workspace: Workspace, context: StepContext, settings: Settings, *, limit_mib: int, reading: Reading) -> None:
        self.workspace = workspace
        self.limit_mib = limit_mib
        self.loads = 0
        self._context, self._settings, self._reading = context, settings, reading
        self._warm: OrderedDict[tuple[str, str], Predictor] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._current: dict[str, str] = {}

    def get(self, dataset: str | int, model: str | None = None) -> Predictor:
        """The predictor of a named model, or of the promoted one as of the last :meth:`refresh`; loaded when it is not in memory.

        Raises:
            ConfigError: no such dataset or model, or nothing is promoted. DataError: the model's files are damaged.
        """
        name = self.workspace.resolve_dataset(dataset)
        with self._lock:
            known = model or self._current.get(name)
            if known and (name, known) in self._warm:
                self._warm.move_to_end((name, known))
                return self._warm[name, known]
        predictor = self._load(resolve_model(self.workspace, name, model))
        if model is None:
            with self._lock:
                self._current[name] = predictor.model.model
        return predictor

    def refresh(self) -> None:
        """Load what was promoted since for the datasets in use; until it is in memory the earlier model answers."""
        with self._lock:
            current = dict(self._current)
        for name, used in current.items():
            try:
                promoted = self.workspace.champion(name)
                if promoted and promoted != used:
                    self._load(resolve_model(self.workspace, name, promoted))
                    with self._lock:
                        self._current[name] = promoted
                    log.info("%s: %s answers from now on, before it %s", name, promoted, used)
            except (JobError, OSError) as error:
                log.error("%s: the newly promoted model cannot be loaded, %s goes on answering: %s", name, used, error)

    def warm(self) -> dict[tuple[str, str], int]:
        """Dataset and model to bytes of weights, the least recently used first."""
        with self._lock:
            return {key: predictor.memory_bytes for key, predictor in self._warm.items()}

    def current(self) -> dict[str, str]:
        """Dataset to the model that answers for it."""
        with self._lock:
            return dict(self._current)

    def _load(self, model: SelectedModel) -> Predictor:
        key = (model.dataset, model.model)
        with self._loading:  # one at a time: several at once would only share the disk, and might not fit into memory
            with self._lock:
                if key in self._warm:
                    self._warm.move_to_end(key)
                    return self._warm[key]
            review = Review(Expected.of(model))
            predictor = Predictor(model, self._context, self._settings, reading=self._reading, review=review)
            self.loads += 1
            with self._lock:
                self._warm[key] = predictor
                self._make_room(key)
            log.info("%s of %s is in memory, %d MiB", model.model, model.dataset, predictor.memory_bytes >> 20)
            return predictor

    def _make_room(self, kept: tuple[str, str]) -> None:
        """Let the least recently used models go. One that a request still uses leaves memory with that request."""
        total = sum(predictor.memory_bytes for predictor in self._warm.values())
        for key in list(self._warm):
            if total <= self.limit_mib << 20 or key == kept:
                break
            total -= self._warm.pop(key).memory_bytes
            if self._current.get(key[0]) == key[1]:
                del self._current[key[0]]
            log.info("%s of %s leaves memory for another model", key[1], key[0])


def served_datasets(workspace: Workspace) -> tuple[str, ...]:
    """Datasets that have a promoted model."""
    return tuple(name for name in workspace.datasets().values() if workspace.champion(name))
