"""Defines a case in work, which the three parts of a predictor hand to each other."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.model import Stage

Record = dict[str, Any]
"""Result of a case; see :meth:`nnunet_jobs.prediction.predictor.Predictor.predict`."""


class Abandoned(Exception):
    """No caller waits for this case any more."""


@dataclass(slots=True, kw_only=True)
class CaseWork:
    """A case in work: preprocessed arrays by stage, then logits by stage, or why it failed (``ours``: an unexpected error).
    ``odd``: warnings about its images.

    ``abandoned`` may be set from any thread; the case's next piece of work then raises :class:`Abandoned`.
    """

    case: Case
    begun: float = field(default_factory=time.monotonic)
    abandoned: threading.Event = field(default_factory=threading.Event)
    arrays: dict[Stage, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    logits: dict[Stage, Any] = field(default_factory=dict)
    odd: tuple[Fault, ...] = ()
    problem: str | None = None
    ours: bool = False
