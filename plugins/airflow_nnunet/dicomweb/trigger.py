"""The trigger that queries the archive while the sensor is deferred and holds no worker slot."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_nnunet.dicomweb.handout import HandOut
from airflow_nnunet.dicomweb.hook import open_archive, unknown_connection
from airflow_nnunet.dicomweb.ledger import StudyLedger
from airflow_nnunet.dicomweb.model import StudyQuery
from airflow_nnunet.dicomweb.stability import KnownStudy, Look, StudyWatch
from airflow_nnunet.jobs.exceptions import ArchiveUnavailable, NnunetJobError
from airflow_nnunet.jobs.stored_arguments import StoredArguments

log = logging.getLogger(__name__)

_SHORTEST_PAUSE_S = 0.5


class DicomWebStudyTrigger(StoredArguments, BaseTrigger):
    """Sends one event when studies are complete, or when the archive refuses the query.

    A triggerer that starts again counts the stable seconds from 0, so that no study is handed out too early. If the
    archive does not answer, it is asked again until the sensor's ``timeout``. The event has only study UIDs and counts.

    Args:
        dicomweb_conn_id: Connection of the archive.
        query: Result of :meth:`StudyQuery.to_json`.
        stable_for: See :class:`StudyWatch`, in seconds.
        hold_s: See :class:`StudyWatch`, in seconds.
        poke_interval: Seconds between two queries, with ten percent of jitter; less if a study may be complete sooner.
        ledger: Path of the file that records what was handed out.
        only_new: See :class:`HandOut`.
        max_offers: See :class:`HandOut`.
        most: Largest number of studies in the event; the others are only counted.
    """

    def __init__(
        self,
        *,
        dicomweb_conn_id: str,
        query: Mapping[str, Any],
        stable_for: float,
        hold_s: float,
        poke_interval: float,
        ledger: str,
        only_new: bool,
        max_offers: int,
        most: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dicomweb_conn_id = dicomweb_conn_id
        self.query = dict(query)
        self.stable_for = stable_for
        self.hold_s = hold_s
        self.poke_interval = poke_interval
        self.ledger = ledger
        self.only_new = only_new
        self.max_offers = max_offers
        self.most = most

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Query the archive at intervals until studies are complete."""
        try:
            look = await self._until_complete()
        except NnunetJobError as error:
            event: dict[str, Any] = {
                "status": "failed", "failure_class": str(error.failure_class), "message": str(error), "parts": dict(error.parts),
            }  # fmt: skip
        else:
            event = {"status": "complete", "studies": [asdict(item) for item in look.ready[: self.most]], "complete": len(look.ready)}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _until_complete(self) -> Look:
        query = StudyQuery.from_json(self.query)
        try:
            connection = await BaseHook.aget_connection(self.dicomweb_conn_id)
        except AirflowNotFoundException as error:
            raise unknown_connection(self.dicomweb_conn_id) from error
        # One try a query: other triggers would have to wait for a thread that sleeps between tries.
        archive = await asyncio.to_thread(open_archive, connection, tries=1)
        ledger = StudyLedger(Path(self.ledger))
        hand_out = HandOut(ledger=ledger, run="", only_new=self.only_new, max_offers=self.max_offers, most=self.most)
        watch = StudyWatch(stable_for=self.stable_for, hold_s=self.hold_s, seen=await self._seen(hand_out))
        told: tuple[int, int] | None = None
        while True:
            pause = self.poke_interval * random.uniform(0.9, 1.1)  # noqa: S311  (jitter, not a secret)
            try:
                look = await asyncio.to_thread(poke, archive, query, watch, ledger)
            except ArchiveUnavailable as error:
                self.log.warning("%s", error)
            else:
                if told != (len(look.ready), look.changing):
                    told = (len(look.ready), look.changing)
                    self.log.info("%s new studies are complete, %s still arriving", *told)
                if look.fire:
                    return look
                if look.due_s is not None:
                    pause = min(pause, max(look.due_s, _SHORTEST_PAUSE_S))
            await asyncio.sleep(pause)

    async def _seen(self, hand_out: HandOut) -> dict[str, KnownStudy]:
        """Read what was handed out before. This is repeated while the storage does not answer, until the ``timeout``."""
        while True:
            try:
                return await asyncio.to_thread(hand_out.seen)
            except OSError as error:
                self.log.warning("%s: cannot be read now (%s); trying again", hand_out.ledger.path, error)
                await asyncio.sleep(self.poke_interval)


def poke(archive: Any, query: StudyQuery, watch: StudyWatch, ledger: StudyLedger) -> Look:
    """Query the archive once, and once more for each study that has just become complete.

    Studies that have grown only by stored files are recorded, because every run would otherwise query each of them
    again.
    """
    studies = archive.find_studies(query)

    def meant(uid: str) -> int:
        return sum(archive.count(uid, series) for series in archive.series(uid, query.series_filter))

    look = watch.look(studies, now=time.monotonic(), count=lambda study: archive.study(study.uid).instances or 0, meant=meant)
    if look.grown:
        try:
            with ledger.turn():
                entries = ledger.read()
                ledger.append(replace(entries[item.uid], instances=item.instances) for item in look.grown if item.uid in entries)
        except OSError as error:  # this costs the next run only some queries
            log.warning("%s: cannot be written now (%s)", ledger.path, error)
    return look
