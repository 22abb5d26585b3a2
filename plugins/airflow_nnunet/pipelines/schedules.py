"""Checks a DAG's schedule, a cron expression or preset in a time zone, before Airflow reads it."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from airflow_nnunet.settings.yaml_files import WrongField

PRESETS = ("@once", "@continuous")
"""Schedules that are not cron expressions. They have no time zone and miss no run."""
_OVERDUE = dt.timedelta(minutes=10)
_RANDOM = re.compile(r"(?:^|[\s,/])[RrHh](?:$|[\s,/(])")
_SUCH_AS = "such as '0 1 * * *' or '@daily'"


def check_schedule(expression: str, timezone: str | None) -> None:
    """Check a schedule and its time zone as Airflow would, and whether it is ever due.

    Raises:
        WrongField: ``schedule`` or ``timezone`` is wrong.
    """
    from airflow.sdk.exceptions import AirflowTimetableInvalid
    from croniter import CroniterError, croniter  # type: ignore[import-untyped]

    check_timezone(timezone)
    if expression in PRESETS:
        return
    try:
        timetable = make_timetable(expression, timezone)
        timetable.validate()
        croniter(timetable.expression, dt.datetime(2024, 1, 1)).get_next()
    except (AirflowTimetableInvalid, CroniterError, ValueError, TypeError, KeyError) as error:
        raise WrongField(
            field="schedule",
            value=expression,
            problem=f"not a cron expression of a time that exists ({error})",
            fix=f"write one {_SUCH_AS}",
        ) from error
    if _RANDOM.search(expression):
        raise WrongField(
            field="schedule",
            value=expression,
            problem="R and H are random times, which differ each time Airflow reads them",
            fix=f"write {_SUCH_AS}",
        )


def check_timezone(name: str | None) -> None:
    """Check the name of a time zone.

    Raises:
        WrongField: There is no such zone.
    """
    if name is None:
        return
    try:
        zone_of(name)
    except (ValueError, OSError) as error:  # pendulum raises ValueErrors, and an OSError for a folder of zone files
        raise WrongField(
            field="timezone", value=name, problem="no such time zone", fix="write one such as 'Europe/Berlin' or 'UTC'"
        ) from error


def make_timetable(expression: str, timezone: str | None) -> Any:
    """Return Airflow's timetable of a cron expression.

    A run that was due while the DAG was paused before its first scheduled run is not made up for. So triggering and
    unpausing a DAG starts only the requested run. This holds for DAGs without a start date only.

    Args:
        expression: Cron expression or preset.
        timezone: Name of a time zone; ``[core] default_timezone`` if None.
    """
    from airflow.sdk import CronTriggerTimetable

    return CronTriggerTimetable(expression, timezone=zone_of(timezone), run_immediately=_OVERDUE)


def zone_of(name: str | None) -> Any:
    """Return the time zone of that name, or Airflow's default one if None."""
    import pendulum
    from airflow import settings

    return settings.TIMEZONE if name is None else pendulum.timezone(name)
