"""Decides that a study is complete when its number of instances has not changed for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from airflow_nnunet.dicomweb.model import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownStudy:
    """Holds what is known about a study that was handed out before.

    Attributes:
        instances: Number of instances of the study.
        meant: Number of instances in the series that were waited for.
        at: Time at which it was last handed out.
        again: Whether to hand it out again when the query finds it.
        owed: Whether to hand it out again even if it is older than the query's dates.
    """

    instances: int
    meant: int
    at: str = ""
    again: bool = False
    owed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Describes a complete study with its counts. ``since`` is when it was last handed out, empty for a new one."""

    uid: str
    instances: int
    meant: int
    since: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Holds the result of one query.

    Attributes:
        ready: Complete studies to hand out, beginning with those that have waited longest.
        changing: Number of new studies that are still arriving.
        fire: Whether to hand out ``ready`` now.
        grown: Known studies that have grown only by files that were stored back.
        due_s: Seconds until the first of the arriving studies may be complete; None if there is none.
    """

    ready: tuple[Ready, ...]
    changing: int
    fire: bool
    grown: tuple[Ready, ...] = ()
    due_s: float | None = None


@dataclass(slots=True)
class _Count:
    instances: int
    since: float
    meant: int | None = None


@dataclass(slots=True)
class StudyWatch:
    """Compares study counts over time, without access to archives and clocks.

    Attributes:
        stable_for: Seconds without a change after which a study is complete.
        hold_s: Seconds that complete studies wait for others that are still arriving.
        seen: Studies that were handed out before, by UID.
    """

    stable_for: float
    hold_s: float
    seen: dict[str, KnownStudy]
    _counts: dict[str, _Count] = field(default_factory=dict)
    _ready_since: float | None = None

    def look(self, studies: Iterable[Study], *, now: float, count: Callable[[Study], int], meant: Callable[[str], int]) -> Look:
        """Evaluate an answer of the archive.

        Args:
            studies: All studies that match the query.
            now: Time in seconds of a monotonic clock.
            count: Returns the number of instances of a study whose answer lacks it.
            meant: Returns the number of instances in the series that the sensor waits for; called once for each change
                of a study. A study that has grown only by stored files, such as segmentations, is not new.
        """
        ready: list[Ready] = []
        grown: list[Ready] = []
        due: list[float] = []
        counts: dict[str, _Count] = {}
        for study in studies:
            instances = study.instances if study.instances is not None else count(study)
            known = self._counts.get(study.uid)
            if known is None or known.instances != instances:
                known = _Count(instances=instances, since=now)
            counts[study.uid] = known
            before = self.seen.get(study.uid)
            if before and before.instances == instances and not before.again:
                continue
            if now - known.since < self.stable_for:
                due.append(self.stable_for - (now - known.since))
                continue
            if known.meant is None:
                known.meant = meant(study.uid)
            if not known.meant:
                continue
            new = before is None or before.meant != known.meant
            found = Ready(uid=study.uid, instances=instances, meant=known.meant, since=before.at if before and not new else "")
            if new or (before and before.again):
                ready.append(found)
            else:
                grown.append(found)
                self.seen[study.uid] = KnownStudy(instances=instances, meant=known.meant, at=found.since)
        for uid, item in self.seen.items():
            if item.owed and uid not in counts:
                ready.append(Ready(uid=uid, instances=item.instances, meant=item.meant, since=item.at))
        self._counts = counts
        ready.sort(key=lambda item: item.since)
        fire = self._fire(bool(ready), len(due), now)
        return Look(ready=tuple(ready), grown=tuple(grown), changing=len(due), fire=fire, due_s=min(due, default=None))

    def _fire(self, ready: bool, changing: int, now: float) -> bool:
        if not ready:
            self._ready_since = None
            return False
        if self._ready_since is None:
            self._ready_since = now
        return changing == 0 or now - self._ready_since >= self.hold_s
