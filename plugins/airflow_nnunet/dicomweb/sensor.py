"""The sensor that hands out complete studies of an archive, each one once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, TaskDeferralTimeout

from airflow_nnunet.dicomweb.hook import DEFAULT_CONN_ID, DicomWebHook
from airflow_nnunet.dicomweb.model import StudyQuery, blank
from airflow_nnunet.dicomweb.stability import Seen, StudyWatch
from airflow_nnunet.dicomweb.trigger import DicomWebStudyTrigger, poke
from airflow_nnunet.exceptions import ArchiveUnavailable, from_job_error, to_airflow_error
from airflow_nnunet.operators.fields import coerce, is_template
from airflow_nnunet.operators.rendering import RenderingMixin
from airflow_nnunet.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY, NnunetRetryPolicy
from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, JobError

if TYPE_CHECKING:
    from airflow.sdk import Context

_SEEN = "dicomweb_seen"
_SHORTEST_POKE_S = 0.5


class DicomWebStudySensor(RenderingMixin, BaseSensorOperator):  # type: ignore[misc, unused-ignore]
    """Wait until an archive has studies that are complete and new, and return their UIDs, ready to be mapped over.

    Complete: the number of instances has not changed for ``stable_for`` seconds. New: not handed out by an earlier run of this
    task with the same filters, or grown since by images (a segmentation that was stored back does not count).

    What was handed out is remembered as an XCom of this task, which the next run reads. There is nothing to set up, a cleared run
    sees what it saw the first time, and losing the XCom costs a second look at finished work, because retrieval, prediction and
    storage each skip what they find done. Study dates alone would not do: they have the grain of a day and say nothing about arrival.

    ``timeout`` and ``soft_fail`` are every sensor's; ``soft_fail`` skips a run that finds nothing new, while an archive that turns
    the query down always fails. All fields below are templates.

    Args:
        dicomweb_conn_id: connection of type ``dicomweb``.
        modality: one that the study must have, such as ``MR``. description: pattern with ``*`` and ``?`` for the study description.
        series_description: pattern that a series must match; with ``modality``, the series whose images count.
        date_from, date_to: study dates, both included. When empty, ``lookback_days`` before the run's date up to the day after it.
        lookback_days: how late a study may arrive after its date and still be found.
        stable_for: seconds without a change. hold_s: seconds that complete studies wait for others that are still arriving.
        only_new: False hands out every complete study of the window.
        deferrable: True waits in the triggerer; False holds a worker slot. Mode ``reschedule`` is refused: it forgets between looks.
        kwargs: everything that any sensor takes.
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
    )
    ui_color = "#fdf1e3"

    def __init__(
        self,
        *,
        dicomweb_conn_id: str = DEFAULT_CONN_ID,
        modality: str | None = None,
        description: str | None = None,
        series_description: str | None = None,
        date_from: date | str | None = None,
        date_to: date | str | None = None,
        lookback_days: int | str = 7,
        stable_for: float | str = 300.0,
        hold_s: float | str = 900.0,
        only_new: bool | str = True,
        deferrable: bool = True,
        retries: int = DEFAULT_RETRIES,
        retry_policy: Any = None,
        retry_delay: timedelta | float = DEFAULT_RETRY_DELAY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy or NnunetRetryPolicy(), retry_delay=retry_delay, **kwargs)
        if self.mode != "poke":
            raise ConfigError(f"mode={self.mode!r}: a study is judged by looks that follow each other; use deferrable=True")
        if self.poke_interval < _SHORTEST_POKE_S:
            raise ConfigError(f"poke_interval={self.poke_interval}: must be {_SHORTEST_POKE_S} s or more; archives serve patients first")
        self.dicomweb_conn_id = dicomweb_conn_id
        self.modality = modality
        self.description = description
        self.series_description = series_description
        self.date_from = date_from
        self.date_to = date_to
        self.lookback_days = lookback_days
        self.stable_for = stable_for
        self.hold_s = hold_s
        self.only_new = only_new
        self.deferrable = deferrable
        self._watch: StudyWatch | None = None
        self._check_constants()

    def execute(self, context: Context) -> Any:
        """Defer, or look from here."""
        try:
            query, watch = self._query(context), self._make_watch(context)
        except JobError as error:
            raise from_job_error(error) from error
        self.log.info("waiting for studies of %s", query.dates or "any date")
        if not self.deferrable:
            self._watch = watch
            return super().execute(context)
        return self.defer(
            trigger=DicomWebStudyTrigger(
                dicomweb_conn_id=self.dicomweb_conn_id,
                query=query.to_json(),
                stable_for=watch.stable_for,
                hold_s=watch.hold_s,
                poke_interval=self.poke_interval,
                seen=dict(watch.seen),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """One look from the worker."""
        if self._watch is None:
            self._watch = self._make_watch(context)
        try:
            look = poke(DicomWebHook(self.dicomweb_conn_id).get_conn(), self._query(context), self._watch)
        except ArchiveUnavailable as error:
            self.log.warning("%s", error)
            return PokeReturnValue(is_done=False)
        if not look.fire:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._hand_out(context, look.ready, look.seen))

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> list[str]:
        """Resume after the trigger's event."""
        if event["status"] != "complete":
            raise to_airflow_error(Failure(failure_class=FailureClass(event["failure_class"]), message=event["message"]))
        return self._hand_out(context, event["studies"], event["seen"])

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Entry point after a deferral. ``soft_fail`` excuses a timeout and nothing else: a wrong password must not look like peace."""
        try:
            return BaseOperator.resume_execution(self, next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            message = f"no new study was complete within {self.timeout:.0f} s"
            raise (AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)) from error

    def _hand_out(self, context: Context, studies: Any, seen: Seen) -> list[str]:
        context["ti"].xcom_push(key=self._seen_key(self._query(context)), value=seen)
        self.log.info("%s studies are complete", len(studies))
        return list(studies)

    def _make_watch(self, context: Context) -> StudyWatch:
        seen: Any = None
        if coerce(self.only_new, bool, "only_new"):
            key = self._seen_key(self._query(context))
            seen = context["ti"].xcom_pull(task_ids=self.task_id, key=key, include_prior_dates=True, map_indexes=context["ti"].map_index)
        return StudyWatch(stable_for=_seconds("stable_for", self.stable_for), hold_s=_seconds("hold_s", self.hold_s), seen=dict(seen or {}))

    def _seen_key(self, query: StudyQuery) -> str:
        return f"{_SEEN}_{query.key(self.dicomweb_conn_id)}"

    def _query(self, context: Context) -> StudyQuery:
        first, last = blank(self.date_from), blank(self.date_to)
        if first is None and last is None:
            days = coerce(self.lookback_days, int, "lookback_days")
            if days < 0:
                raise ConfigError(f"lookback_days={days}: must be 0 or more")
            # Study dates are local dates; a day more at the end covers every time zone.
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
        """Judge what is known at parse time."""
        names = ("modality", "description", "series_description", "date_from", "date_to")
        StudyQuery(**{name: blank(getattr(self, name)) for name in names if not is_template(getattr(self, name))})
        for name in ("stable_for", "hold_s"):
            if not is_template(getattr(self, name)):
                _seconds(name, getattr(self, name))


def _seconds(name: str, value: Any) -> float:
    number = float(coerce(value, float, name))
    if not 0 <= number < float("inf"):
        raise ConfigError(f"{name}={value!r}: must be 0 seconds or more")
    return number
