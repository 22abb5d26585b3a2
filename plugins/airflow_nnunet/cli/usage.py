"""``airflow nnunet usage`` shows GPU hours by team and dataset, summed over all workspaces that the user may read."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from airflow_nnunet.cli.command import command
from airflow_nnunet.settings.resolver import job_roots, resolve_config
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.usage import DONE, FOLDER, Usage, read_usage
from nnunet_jobs.contract.storage.marker import MARKER
from nnunet_jobs.contract.storage.permissions import explain_permission_error


@dataclass(slots=True, kw_only=True)
class Row:
    """Sums what one team used for one dataset in a span of time.

    Attributes:
        attempts: Number of attempts that ended in this time.
        failed: Number of these attempts that failed or were cancelled.
        gpu_hours: Hours on GPUs, each weighted by the reserved share of its memory.
        slot_hours: Hours on CPU slots.
        other_hours: Hours of steps that use neither, such as registration and preprocessing.
        waited_hours: Hours of waiting for a device.
    """

    team: str
    dataset: str
    attempts: int = 0
    failed: int = 0
    gpu_hours: float = 0.0
    slot_hours: float = 0.0
    other_hours: float = 0.0
    waited_hours: float = 0.0

    def add(self, usage: Usage, since: dt.datetime, until: dt.datetime) -> None:
        """Add the part of an attempt that lies in the span, so that adjacent spans add up."""
        ended = dt.datetime.fromisoformat(usage.ended)
        computing = ended - dt.timedelta(seconds=usage.computed_s)
        if since <= ended < until:
            self.attempts += 1
            self.failed += usage.outcome != DONE
        hours = _overlap(computing, ended, since, until)
        if usage.device == "cuda":
            self.gpu_hours += hours * len(usage.gpus) * usage.gpu_share
        elif usage.slot:
            self.slot_hours += hours
        else:
            self.other_hours += hours
        self.waited_hours += _overlap(computing - dt.timedelta(seconds=usage.waited_s), computing, since, until)


def summed(usages: Iterable[Usage], *, since: dt.datetime, until: dt.datetime, team: str | None = None) -> list[Row]:
    """Return one row for each team and dataset with any usage, sorted by name."""
    rows: dict[tuple[str, str], Row] = {}
    for usage in usages:
        if team is None or usage.team == team:
            row = rows.setdefault((usage.team, usage.dataset), Row(team=usage.team, dataset=usage.dataset))
            row.add(usage, since, until)
    return [
        row for _, row in sorted(rows.items()) if row.attempts or row.gpu_hours or row.slot_hours or row.other_hours or row.waited_hours
    ]


def total(rows: Iterable[Row]) -> Row:
    """Return the sum of all rows."""
    found = Row(team="total", dataset="")
    for row in rows:
        for name in ("attempts", "failed", "gpu_hours", "slot_hours", "other_hours", "waited_hours"):
            setattr(found, name, getattr(found, name) + getattr(row, name))
    return found


def moment(text: str, field: str) -> dt.datetime:
    """Parse a day or time in ISO 8601, which is UTC if it has no time zone.

    Raises:
        ConfigError: It is neither a day nor a time.
    """
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            field=f"--{field}", value=text, problem="must be a day such as 2026-01-31 or a time such as 2026-01-31T18:00"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


@command
def usage_command(args: argparse.Namespace) -> int:
    """Print the usage in one of Airflow's formats or as JSON. Folders that cannot be read are named on stderr."""
    from airflow.cli.simple_table import AirflowConsole

    now = dt.datetime.now(dt.UTC)
    since = moment(args.since, "since") if args.since else now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    until = moment(args.until, "until") if args.until else now
    if until <= since:
        raise ConfigError(field="--until", value=until, problem=f"must be later than --since ({since.isoformat()})")
    roots = dict.fromkeys([*job_roots(), *([resolve_config(args.conn_id).workspace.jobs] if args.conn_id else [])])
    usages: list[Usage] = []
    left_out = []
    for root in roots:
        try:
            os.stat(root)
            found, damaged = read_usage(root, since=since)
        except FileNotFoundError:
            left_out.append(f"{root}: no such folder; no job has run there yet, or it was moved; set jobs (or workspace) to its path")
            continue
        except PermissionError as error:
            left_out.append(explain_permission_error(error))
            continue
        except OSError as error:  # storage that does not answer must not hide the others
            left_out.append(f"{root}: cannot be read now ({error.strerror})")
            continue
        if not any(os.path.lexists(os.path.join(root, name)) for name in (MARKER, FOLDER)):
            left_out.append(f"{root}: has no marker {MARKER}; no job has run there yet, or a share is not mounted there")
        usages += found
        if damaged:
            left_out.append(f"{root}/.usage: {damaged} line(s) that cannot be read, after a crash or on a full disk")
    for reason in left_out:
        print(f"not in the sum: {reason}", file=sys.stderr)
    rows = summed(usages, since=since, until=until, team=args.team)
    if args.json:
        span = {"since": since.isoformat(), "until": until.isoformat(), "rows": [_rounded(row) for row in rows]}
        print(json.dumps({**span, "total": _rounded(total(rows)), "left_out": left_out}, indent=1))
    elif args.output in ("json", "yaml"):
        AirflowConsole().print_as([_rounded(row) for row in rows], args.output)
    else:
        print(f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} UTC")
        if rows:
            AirflowConsole().print_as([columns(row) for row in [*rows, total(rows)]], args.output)
        else:
            print("no attempt ended or computed in this time")
    return Exit.DONE


def columns(row: Row) -> dict[str, str]:
    """Format a row for people, with the names of its columns."""
    return {
        "team": row.team or "(no team)",
        "dataset": row.dataset,
        "attempts": str(row.attempts),
        "not done": str(row.failed),
        "GPU h": f"{row.gpu_hours:.2f}",
        "CPU slot h": f"{row.slot_hours:.2f}",
        "other h": f"{row.other_hours:.2f}",
        "waited h": f"{row.waited_hours:.2f}",
    }


def _rounded(row: Row) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(row).items()}


def _overlap(begin: dt.datetime, end: dt.datetime, since: dt.datetime, until: dt.datetime) -> float:
    """Return the hours that two spans have in common."""
    return max(0.0, (min(end, until) - max(begin, since)).total_seconds()) / 3600
