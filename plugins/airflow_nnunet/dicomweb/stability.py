"""When is a study complete? When its number of instances has not changed for a while, by the watcher's own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from airflow_nnunet.dicomweb.model import Study
from nnunet_jobs.contract.files import content_hash

# Studies that a sensor remembers having handed out. Forgetting one costs a look at finished work: every later step is idempotent.
_REMEMBERED = 2000
Seen = dict[str, list[int]]


@dataclass(slots=True)
class _Count:
    instances: int
    since: float
    meant: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found.

    Attributes:
        ready: UIDs of studies that are complete and new. changing: studies that are new and still arriving.
        fire: whether to hand out ``ready`` now. seen: what the next run must know.
        due_s: seconds until the first of those that are still arriving may be complete; None when there is none.
    """

    ready: tuple[str, ...]
    changing: int
    fire: bool
    seen: Seen
    due_s: float | None = None


@dataclass(slots=True)
class StudyWatch:
    """Judges study counts over time. Knows nothing of archives and wall clocks.

    Attributes:
        stable_for: seconds without a change after which a study is complete.
        hold_s: seconds that complete studies wait for others that are still arriving.
        seen: by hash of the study UID, what earlier runs handed out: instances of the study, and instances that were meant.
    """

    stable_for: float
    hold_s: float
    seen: Mapping[str, list[int]]
    _counts: dict[str, _Count] = field(default_factory=dict)
    _ready_since: float | None = None

    def look(self, studies: Iterable[Study], *, now: float, count: Callable[[Study], int], meant: Callable[[str], int]) -> Look:
        """Judge an answer of the archive.

        Args:
            studies: all that match. now: monotonic seconds. count: instances of a study whose answer lacks the number.
            meant: instances in the series that the sensor waits for; asked once a study and change. A study that has grown only
                by what was stored back, such as segmentations, is not new.
        """
        seen: Seen = {key: list(value) for key, value in self.seen.items()}
        ready: list[str] = []
        due: list[float] = []
        counts: dict[str, _Count] = {}
        for study in studies:
            key = content_hash(study.uid)
            instances = study.instances if study.instances is not None else count(study)
            known = self._counts.get(study.uid)
            if known is None or known.instances != instances:
                known = _Count(instances=instances, since=now)
            counts[study.uid] = known
            before = seen.get(key)
            if before and before[0] == instances:
                continue
            if now - known.since < self.stable_for:
                due.append(self.stable_for - (now - known.since))
                continue
            if known.meant is None:
                known.meant = meant(study.uid)
            if known.meant and (before is None or before[1] != known.meant):
                ready.append(study.uid)
            if known.meant:
                seen.pop(key, None)  # to the end: the oldest are forgotten first
                seen[key] = [instances, known.meant]
        self._counts = counts
        fire = self._fire(bool(ready), len(due), now)
        return Look(ready=tuple(ready), changing=len(due), fire=fire, seen=_bounded(seen), due_s=min(due, default=None))

    def _fire(self, ready: bool, changing: int, now: float) -> bool:
        if not ready:
            self._ready_since = None
            return False
        if self._ready_since is None:
            self._ready_since = now
        return changing == 0 or now - self._ready_since >= self.hold_s


def _bounded(seen: Seen) -> Seen:
    return dict(list(seen.items())[-_REMEMBERED:])
