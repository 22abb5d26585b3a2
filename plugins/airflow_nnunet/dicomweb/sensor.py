"""The sensor that hands out complete studies of an archive, each one once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, TaskDeferralTimeout

from airflow_nnunet.dicomweb.handout import HandOut, given_up_text
from airflow_nnunet.dicomweb.hook import DEFAULT_CONN_ID, DicomWebHook
from airflow_nnunet.dicomweb.ledger import StudyLedger
from airflow_nnunet.dicomweb.model import StudyQuery, blank
from airflow_nnunet.dicomweb.stability import Ready, StudyWatch
from airflow_nnunet.dicomweb.trigger import DicomWebStudyTrigger, poke
from airflow_nnunet.jobs.exceptions import ArchiveUnavailable, from_job_error, to_airflow_error
from airflow_nnunet.jobs.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY, NnunetRetryPolicy
from airflow_nnunet.operators.fields import coerce, is_template
from airflow_nnunet.operators.rendering import RenderingMixin
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.workspace_memory import TaskMemory
from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, JobError

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

DEFAULT_OFFERS = 5
GIVEN_UP = "given_up"
"""Key of the XCom with the UIDs of studies that are not handed out again."""
_SHORTEST_POKE_S = 0.5


class DicomWebStudySensor(RenderingMixin, BaseSensorOperator):  # type: ignore[misc, unused-ignore]
    """Wait until an archive has studies that are complete and new, and return their UIDs, ready to be mapped over.

    A study is complete when its number of instances has not changed for ``stable_for`` seconds. It is new in three
    cases: no earlier run of this task with the same filters got it, it has more images since then (stored segmentations
    do not count), or a task mapped over it failed. A failed study is handed out to ``max_offers`` runs in all, even if
    it is older than the dates by then. After that it is given up, and the log, the XCom ``given_up`` and the doctor
    name its UID.

    At most ``core.max_map_length`` studies are handed out at once, because Airflow maps over no longer list; the next
    run gets the rest. The workspace records them before they are returned (:mod:`airflow_nnunet.dicomweb.ledger`), so
    that each study is handed out at least once even if processes are killed, and a cleared or retried task returns what
    its run got before. Two runs at once never get the same study.

    ``timeout`` and ``soft_fail`` work as in every sensor. ``soft_fail`` skips a run that finds nothing new, but an
    archive that refuses the query always fails the task. All fields below except ``team`` are templates.

    Args:
        dicomweb_conn_id: Connection of type ``dicomweb``.
        modality: Modality that the study must have, such as ``MR``.
        description: Pattern with ``*`` and ``?`` for the study description.
        series_description: Pattern that a series must match; with ``modality``, the series whose images count.
        date_from: First study date, included; if empty, ``lookback_days`` before the run's date.
        date_to: Last study date, included; if empty, the day after the run's date.
        lookback_days: Number of days before the run's date that the query covers, so that late studies are found.
        stable_for: Seconds without a change after which a study counts as complete.
        hold_s: Seconds that complete studies wait for others that are still arriving.
        only_new: False hands out every complete study of the dates, beginning with those that were never handed out or
            the longest time ago.
        max_offers: Number of runs that get a study whose tasks fail before it is given up, 1 or more.
        deferrable: True waits in the triggerer; False holds a worker slot. Mode ``reschedule`` is refused, because it
            keeps no counts between two queries.
        nnunet_conn_id: Connection with another workspace.
        team: Team whose workspace is used; see NnunetOperator.
        kwargs: Everything that any sensor takes.
    """

    template_fields = (
        "dicomweb_conn_id",
        "modality",
        "description",
        "series_description",
        "date_from",
        "date_to",
        "lookback_days",
        "stable_for",
        "hold_s",
        "only_new",
        "max_offers",
        "nnunet_conn_id",
    )
    ui_color = "#fdf1e3"

    def __init__(
        self,
        *,
        dicomweb_conn_id: str | XComArg = DEFAULT_CONN_ID,
        modality: str | XComArg | None = None,
        description: str | XComArg | None = None,
        series_description: str | XComArg | None = None,
        date_from: date | str | XComArg | None = None,
        date_to: date | str | XComArg | None = None,
        lookback_days: int | str | XComArg = 7,
        stable_for: float | str | XComArg = 300.0,
        hold_s: float | str | XComArg = 900.0,
        only_new: bool | str | XComArg = True,
        max_offers: int | str = DEFAULT_OFFERS,
        nnunet_conn_id: str | None = None,
        team: str | None = None,
        deferrable: bool = True,
        retries: int = DEFAULT_RETRIES,
        retry_policy: Any = None,
        retry_delay: timedelta | float = DEFAULT_RETRY_DELAY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy or NnunetRetryPolicy(), retry_delay=retry_delay, **kwargs)
        if self.mode != "poke":
            raise ConfigError(field="mode", value=self.mode, problem="counts must be kept between two queries", fix="use deferrable=True")
        if self.poke_interval < _SHORTEST_POKE_S:
            raise ConfigError(
                field="poke_interval",
                value=self.poke_interval,
                problem=f"must be {_SHORTEST_POKE_S} s or more",
                fix="set a longer interval, as archives serve patients first",
            )
        self.dicomweb_conn_id: Any = dicomweb_conn_id
        self.modality: Any = modality
        self.description: Any = description
        self.series_description: Any = series_description
        self.date_from: Any = date_from
        self.date_to: Any = date_to
        self.lookback_days: Any = lookback_days
        self.stable_for: Any = stable_for
        self.hold_s: Any = hold_s
        self.only_new: Any = only_new
        self.max_offers = max_offers
        self.nnunet_conn_id = nnunet_conn_id
        self.team = team  # not a template, as in NnunetOperator
        self.deferrable = deferrable
        self._watch: StudyWatch | None = None
        self._check_constants()

    def execute(self, context: Context) -> Any:
        """Return what this run got before; otherwise record outcomes of earlier runs, then defer or wait here."""
        try:
            hand_out = self._hand_out(context)
            self._watch = self._make_watch(hand_out)
            if studies := hand_out.repeat():
                self.log.info("this run got %s studies before; they are handed out again", len(studies))
                return studies
            self._record_outcomes(context, hand_out)
            self.log.info("waiting for studies of %s", self._query(context).dates or "any date")
            if self.deferrable:
                self._defer(context, deadline=time.time() + self.timeout)
            self._watch.seen = hand_out.seen()
            return super().execute(context)
        except JobError as error:
            raise from_job_error(error) from error

    def poke(self, context: Context) -> PokeReturnValue:
        """Query the archive once from the worker."""
        hand_out = self._hand_out(context)
        if self._watch is None:
            self._watch = self._make_watch(hand_out)
        try:
            look = poke(DicomWebHook(self.dicomweb_conn_id).get_conn(), self._query(context), self._watch, hand_out.ledger)
        except ArchiveUnavailable as error:
            self.log.warning("%s", error)
            return PokeReturnValue(is_done=False)
        if not look.fire:
            return PokeReturnValue(is_done=False)
        studies = self._give(hand_out, look.ready, len(look.ready))
        self._watch.seen = hand_out.seen()
        return PokeReturnValue(is_done=bool(studies), xcom_value=studies)

    def execute_complete(self, context: Context, event: Mapping[str, Any], deadline: float) -> list[str]:
        """Resume after the trigger's event."""
        if event["status"] != "complete":
            raise to_airflow_error(
                Failure(failure_class=FailureClass(event["failure_class"]), message=event["message"], parts=event.get("parts", {}))
            )
        studies = self._give(self._hand_out(context), [Ready(**item) for item in event["studies"]], event["complete"])
        if not studies:
            self._defer(context, deadline=deadline)
        return studies

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. ``soft_fail`` skips only after a timeout, so that a wrong password still fails."""
        try:
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            message = f"no new study was complete within {self.timeout:.0f} s"
            raise (AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)) from error

    # --- handing out --------------------------------------------------------------------------------------------
    def _defer(self, context: Context, *, deadline: float) -> None:
        hand_out = self._hand_out(context)
        self.defer(
            trigger=DicomWebStudyTrigger(
                dicomweb_conn_id=self.dicomweb_conn_id,
                query=self._query(context).to_json(),
                stable_for=_seconds("stable_for", self.stable_for),
                hold_s=_seconds("hold_s", self.hold_s),
                poke_interval=self.poke_interval,
                ledger=str(hand_out.ledger.path),
                only_new=hand_out.only_new,
                max_offers=hand_out.max_offers,
                most=hand_out.most,
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=max(1.0, deadline - time.time())),
        )

    def _give(self, hand_out: HandOut, ready: Sequence[Ready], complete: int) -> list[str]:
        studies = hand_out.give(ready)
        if not studies:
            self.log.info("another run got these studies in the meantime")
            return []
        rest = complete - len(studies)
        later = f"; {rest} more are left to the next run: core.max_map_length is {hand_out.most}" if rest else ""
        self.log.info("%s complete studies are handed out%s", len(studies), later)
        return studies

    def _record_outcomes(self, context: Context, hand_out: HandOut) -> None:
        """Record how the studies of earlier runs ended, and report those that are given up."""
        owed, given_up = hand_out.record_outcomes(self, context["ti"].dag_id)
        if owed:
            self.log.warning("tasks of %s studies failed in earlier runs; these studies are handed out again", len(owed))
        if given_up:
            context["ti"].xcom_push(key=GIVEN_UP, value=[entry.study for entry in given_up])
            self.log.error("%s", given_up_text(given_up))

    def _hand_out(self, context: Context) -> HandOut:
        ti, query = context["ti"], self._query(context)
        owner = {"dag": ti.dag_id, "task": ti.task_id, "map_index": -1 if ti.map_index is None else ti.map_index}
        owner |= {"connection": self.dicomweb_conn_id, "modality": query.modality}
        owner |= {"description": query.description, "series_description": query.series_description}
        workspace = resolve_config(self.nnunet_conn_id, team=self.team).workspace
        return HandOut(
            ledger=StudyLedger.of(workspace, owner, memory=TaskMemory.of_this_process()),
            run=ti.run_id,
            only_new=bool(coerce(self.only_new, bool, "only_new")),
            max_offers=self._offers(),
            # Airflow maps over no longer list. The task would fail after its studies are recorded.
            most=conf.getint("core", "max_map_length", fallback=1024),
        )

    def _make_watch(self, hand_out: HandOut) -> StudyWatch:
        stable_for, hold_s = _seconds("stable_for", self.stable_for), _seconds("hold_s", self.hold_s)
        return StudyWatch(stable_for=stable_for, hold_s=hold_s, seen=hand_out.seen())

    def _offers(self) -> int:
        offers = int(coerce(self.max_offers, int, "max_offers"))
        if offers < 1:
            raise ConfigError(field="max_offers", value=self.max_offers, problem="must be 1 or more")
        return offers

    def _query(self, context: Context) -> StudyQuery:
        first, last = blank(self.date_from), blank(self.date_to)
        if first is None and last is None:
            days = coerce(self.lookback_days, int, "lookback_days")
            if days < 0:
                raise ConfigError(field="lookback_days", value=days, problem="must be 0 or more")
            # Study dates are local dates. One more day at the end covers every time zone.
            anchor = context.get("data_interval_end") or context["dag_run"].run_after
            first, last = anchor.date() - timedelta(days=days), anchor.date() + timedelta(days=1)
        return StudyQuery(
            date_from=first,
            date_to=last,
            modality=blank(self.modality),
            description=blank(self.description),
            series_description=blank(self.series_description),
        )

    def _check_constants(self) -> None:
        """Check the values that are known when the DAG is parsed."""
        names = ("modality", "description", "series_description", "date_from", "date_to")
        StudyQuery(**{name: blank(getattr(self, name)) for name in names if not is_template(getattr(self, name))})
        for name in ("stable_for", "hold_s"):
            if not is_template(getattr(self, name)):
                _seconds(name, getattr(self, name))
        if not is_template(self.max_offers):
            self._offers()


def _seconds(name: str, value: Any) -> float:
    number = float(coerce(value, float, name))
    if not 0 <= number < float("inf"):
        raise ConfigError(field=name, value=value, problem="must be 0 seconds or more")
    return number
