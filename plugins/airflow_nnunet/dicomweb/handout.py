"""Records for one run of a sensor how the studies of earlier runs ended, and which studies it hands out itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from airflow_nnunet.dicomweb.ledger import FAILED, OUT, Entry, StudyLedger, now
from airflow_nnunet.dicomweb.outcomes import entries_with_outcome
from airflow_nnunet.dicomweb.stability import KnownStudy, Ready

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

# For this long after its last hand-out a failed study is checked again, in case a person has cleared its tasks.
_JUDGED_AGAIN = dt.timedelta(days=30)
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOut:
    """Hands out studies to one run.

    Attributes:
        ledger: Ledger of the sensor.
        run: Id of the DAG run.
        only_new: False also hands out studies that were handed out before.
        max_offers: Number of runs that get a study whose tasks fail.
        most: Largest number of studies to hand out at once.
    """

    ledger: StudyLedger
    run: str
    only_new: bool
    max_offers: int
    most: int

    def seen(self) -> dict[str, KnownStudy]:
        """Return what a watch needs to know about earlier hand-outs."""
        found = {}
        for uid, entry in self.ledger.read().items():
            owed = entry.state == FAILED and entry.offers < self.max_offers
            again = owed or not self.only_new
            found[uid] = KnownStudy(instances=entry.instances, meant=entry.meant, at=entry.at, again=again, owed=owed)
        return found

    def repeat(self) -> list[str]:
        """Hand out again the studies that this run got before it was retried or cleared, in the same order."""
        with self.ledger.turn():
            own = [entry for entry in self.ledger.read().values() if entry.run == self.run]
            return self._record(sorted(own, key=lambda entry: entry.index)[: self.most])

    def give(self, ready: Sequence[Ready]) -> list[str]:
        """Record for this run, and return, the studies that no other run has taken in the meantime."""
        with self.ledger.turn():
            entries, seen = self.ledger.read(), self.seen()
            free = [item for item in ready if (known := seen.get(item.uid)) is None or known.again or known.meant != item.meant]
            return self._record([self._entry(item, entries.get(item.uid)) for item in free[: self.most]])

    def record_outcomes(self, task: BaseOperator, dag_id: str) -> tuple[list[Entry], list[Entry]]:
        """Record how the studies of earlier runs ended.

        Returns:
            The failed studies that are handed out again, and those that are given up.
        """
        known = self.ledger.read().values()
        changed = entries_with_outcome(
            task, dag_id, [entry for entry in known if entry.state == OUT or (entry.state == FAILED and _is_recent(entry))]
        )
        with self.ledger.turn():
            newest = self.ledger.read()
            self.ledger.append(
                entry for entry in changed if newest[entry.study].run == entry.run and newest[entry.study].state != entry.state
            )
        failed = [entry for entry in self.ledger.read().values() if entry.state == FAILED]
        return [entry for entry in failed if entry.offers < self.max_offers], [entry for entry in failed if entry.offers >= self.max_offers]

    def _entry(self, item: Ready, before: Entry | None) -> Entry:
        owed = before is not None and before.state == FAILED and before.meant == item.meant and self.only_new
        offers = before.offers + 1 if before is not None and owed else 1
        return Entry(study=item.uid, instances=item.instances, meant=item.meant, run=self.run, index=0, offers=offers)

    def _record(self, entries: Sequence[Entry]) -> list[str]:
        moment = now()
        self.ledger.append(
            replace(entry, run=self.run, index=index, max_offers=self.max_offers, state=OUT, at=moment)
            for index, entry in enumerate(entries)
        )
        return [entry.study for entry in entries]


def given_up_text(entries: Sequence[Entry]) -> str:
    """Return a message with the studies that are given up, and what to do about them."""
    shown = ", ".join(f"{entry.study} (run {entry.run})" for entry in entries[:_SHOWN])
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    fix = "find out why their tasks failed, then clear those tasks, or trigger a run with only_new off"
    return f"{len(entries)} studies failed in every run that got them and are not handed out again: {shown}{more}; {fix}"


def _is_recent(entry: Entry) -> bool:
    return dt.datetime.fromisoformat(entry.at) > dt.datetime.now(dt.UTC) - _JUDGED_AGAIN
