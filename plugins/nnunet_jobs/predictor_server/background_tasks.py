"""Runs a server's repeated tasks: an error in a round is logged and shown, and the next round runs anyway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import JobError

log = logging.getLogger("nnunet_jobs")


class BackgroundTask:
    """Repeats a piece of work at an interval, or until it succeeds once.

    Args:
        name: Name in the log and in ``/readyz``.
        act: Does one round.
        every_s: Seconds between two rounds.
        once: Whether it ends with the first success.
        problems: Returns the problems that the last round handled, by subject.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], Awaitable[None]],
        *,
        every_s: float,
        once: bool = False,
        problems: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.name = name
        self.done = False
        self._act, self._every_s, self._once, self._problems = act, every_s, once, problems
        self._failed: str | None = None
        self._ended = False

    @property
    def alive(self) -> bool:
        """Whether it has not ended unexpectedly."""
        return self.done or not self._ended

    def words(self) -> list[str]:
        """Return the problems that prevent its work, for people; empty if there are none."""
        found = [f"{self.name}: {self._failed}"] if self._failed else []
        return [*found, *(f"{self.name}: {subject}: {problem}" for subject, problem in sorted(self._problems().items()))]

    async def run(self) -> None:
        """Do it until cancelled."""
        try:
            while not self.done:
                try:
                    await self._act()
                except Exception as error:
                    self._note(error)
                else:
                    self._failed = None
                    self.done = self._once
                if not self.done:
                    await asyncio.sleep(self._every_s)
        finally:
            self._ended = True

    def _note(self, error: Exception) -> None:
        words = f"{classify(error)}; the server's log has the reason"  # its text may name the server's folders
        if words != self._failed:  # once, not at every round
            log.error("%s: %s; it is tried again", self.name, error, exc_info=not isinstance(error, JobError))
        self._failed = words
