"""``airflow nnunet usage``: sums by team and dataset over every workspace, as a table and as JSON."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_nnunet.cli.usage import Row, moment, summed, usage_command
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.usage import Usage, append_usage
from support.jobs import make_spec

DAY = dt.timedelta(days=1)
JANUARY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def attempt(hours: float, **fields: Any) -> Usage:
    known = {
        "job": "train-1", "attempt": 1, "step": "train", "dataset": "Dataset004_Hip", "team": "mri", "user": "ada", "host": "a",
        "started": "2026-01-02T00:00:00+00:00", "ended": "2026-01-02T12:00:00+00:00", "device": "cuda", "gpus": ("GPU-1",),
        "outcome": "done",
    }  # fmt: skip
    return Usage(computed_s=hours * 3600, **(known | fields))


def one(*usages: Usage, since: dt.datetime = JANUARY, until: dt.datetime = JANUARY + 31 * DAY) -> Row:
    (row,) = summed(usages, since=since, until=until)
    return row


def arguments(**given: Any) -> argparse.Namespace:
    known = {"since": "2026-01-01", "until": "2026-02-01", "team": None, "output": "table", "json": False, "conn_id": None}
    return argparse.Namespace(**(known | given))


def test_a_gpu_hour_is_an_hour_of_a_whole_gpu() -> None:
    assert one(attempt(2)).gpu_hours == 2
    assert one(attempt(2, gpus=("GPU-1", "GPU-2"))).gpu_hours == 4
    assert one(attempt(2, gpu_share=0.25)).gpu_hours == 0.5


def test_cpu_slots_and_steps_without_a_slot_are_counted_apart() -> None:
    row = one(attempt(1, device="cpu", gpus=(), slot=True), attempt(2, device="cpu", gpus=(), job="preprocess-1"))
    assert (row.gpu_hours, row.slot_hours, row.other_hours) == (0, 1, 2)


def test_waiting_is_no_computing_and_failures_count_their_time() -> None:
    row = one(attempt(1, waited_s=7200.0), attempt(3, outcome="hang"), attempt(0, device="", gpus=(), outcome="cancelled", waited_s=3600.0))
    assert (row.attempts, row.failed, row.gpu_hours, row.waited_hours) == (3, 2, 4, 3)


def test_spans_that_meet_add_up() -> None:
    long = attempt(30, ended="2026-01-03T12:00:00+00:00", waited_s=12 * 3600.0)  # waits from the 1st 18:00, computes from the 2nd 6:00
    days = [summed([long], since=JANUARY + n * DAY, until=JANUARY + (n + 1) * DAY) for n in range(4)]
    assert [sum(row.gpu_hours for row in rows) for rows in days] == [0, 18, 12, 0]
    assert [sum(row.waited_hours for row in rows) for rows in days] == [6, 6, 0, 0]
    assert [sum(row.attempts for row in rows) for rows in days] == [0, 0, 1, 0], "an attempt belongs to the day of its end"


def test_days_are_utc_and_a_wrong_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert moment("2026-01-31", "since") == dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
    assert moment("2026-01-31T01:00+01:00", "since") == dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
    with pytest.raises(ConfigError, match="--until='soon': must be a day such as 2026-01-31"):
        moment("soon", "until")
    with pytest.raises(SystemExit, match="3"):
        usage_command(arguments(until="2025-01-01"))
    assert "must be later than --since" in capsys.readouterr().err


@pytest.fixture
def booked(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Books of the common workspace and of two teams, in a folder that other users may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="nnunet-usage-") as folder:
        os.chmod(folder, 0o755)
        yield _books(Path(folder), monkeypatch)


def _books(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    teams = root / "teams"
    teams.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(teams))
    monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(root / "common"))
    folders = {"": root / "common"}
    for name in ("ct", "mri"):
        folders[name] = root / name
        (teams / f"{name}.yaml").write_text(f"pool: {{slots: 1}}\nnnunet: {{workspace: {root / name}}}\n")
    for name in folders:
        job = JobDir.create(make_spec(resolve_config(team=name or None).workspace, name))
        append_usage(job, attempt(2, job=job.job_id, team=name))
        append_usage(job, attempt(1, job=job.job_id, attempt=2, team=name, dataset="Dataset005_Liver", outcome="gpu_oom"))
    return folders


def test_all_teams_are_in_one_table(booked: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    usage_command(arguments())
    lines = capsys.readouterr().out.splitlines()
    assert set(lines.pop(2)) == {"=", "+"}
    out = [line.replace("|", " ").split() for line in lines]
    assert out[0] == ["2026-01-01", "00:00", "to", "2026-02-01", "00:00", "UTC"]
    assert out[1] == ["team", "dataset", "attempts", "not", "done", "GPU", "h", "CPU", "slot", "h", "other", "h", "waited", "h"]
    assert out[2] == ["(no", "team)", "Dataset004_Hip", "1", "0", "2.00", "0.00", "0.00", "0.00"]
    assert out[5] == ["ct", "Dataset005_Liver", "1", "1", "1.00", "0.00", "0.00", "0.00"]
    assert out[8] == ["total", "6", "3", "9.00", "0.00", "0.00", "0.00"]
    usage_command(arguments(since="2026-01-03"))
    assert "no attempt ended" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_the_rows_come_in_airflows_other_formats(output: str, booked: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    usage_command(arguments(team="mri", output=output))
    rows = yaml.safe_load(capsys.readouterr().out)  # which reads JSON too
    assert [(row["team"], row["dataset"], float(row["gpu_hours"])) for row in rows] == [
        ("mri", "Dataset004_Hip", 2.0), ("mri", "Dataset005_Liver", 1.0),
    ]  # fmt: skip
    usage_command(arguments(team="mri", output="plain"))
    out = capsys.readouterr().out.splitlines()
    assert out[2].split()[:4] == ["mri", "Dataset004_Hip", "1", "0"]
    assert out[4].split()[0] == "total"
    usage_command(arguments(since="2026-01-03", output=output))
    assert yaml.safe_load(capsys.readouterr().out) == []


def test_json_of_one_team(booked: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    usage_command(arguments(team="mri", json=True))
    found = json.loads(capsys.readouterr().out)
    assert [(row["team"], row["dataset"], row["gpu_hours"]) for row in found["rows"]] == [
        ("mri", "Dataset004_Hip", 2.0), ("mri", "Dataset005_Liver", 1.0),
    ]  # fmt: skip
    assert (found["total"]["gpu_hours"], found["left_out"]) == (3.0, [])


def test_what_one_may_not_read_is_named_and_left_out(booked: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    usage_command(arguments(json=True))
    assert {row["team"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"", "ct", "mri"}
    for name in ("", "mri"):  # teams that let others see what they use
        for path in (booked[name], *booked[name].rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    os.chmod(booked["ct"] / "jobs", 0o700 if os.geteuid() == 0 else 0)
    with somebody():
        usage_command(arguments(json=True))
    os.chmod(booked["ct"] / "jobs", 0o700)
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert {row["team"] for row in found["rows"]} == {"", "mri"}
    assert len(found["left_out"]) == 1
    assert f"{booked['ct']}/jobs" in shown.err


@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """Another user than root, who may read everything; the same one where tests do not run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_jobs_folder_that_is_not_there_is_said(nnunet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usage_command(arguments())
    said = capsys.readouterr()
    assert f"not in the sum: {nnunet / 'jobs'}: no such folder" in said.err
    assert "or it was moved; set jobs (or workspace) to its path" in said.err
    usage_command(arguments(json=True))
    assert "no such folder" in json.loads(capsys.readouterr().out)["left_out"][0]
    (nnunet / "jobs").mkdir(parents=True)  # the mount point of a share that is not mounted
    usage_command(arguments(json=True))
    (left_out,) = json.loads(capsys.readouterr().out)["left_out"]
    assert left_out.startswith(f"{nnunet / 'jobs'}: has no marker")
    JobDir.create(make_spec(resolve_config().workspace, "first"))
    usage_command(arguments(json=True))
    assert json.loads(capsys.readouterr().out)["left_out"] == [], "no job has ended yet, and nothing is missing"


def test_storage_that_does_not_answer_is_named_and_left_out(booked: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(booked["ct"], booked["ct"].with_name("elsewhere"))
    booked["ct"].write_text("a file where the folder was")
    usage_command(arguments(json=True))
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert {row["team"] for row in found["rows"]} == {"", "mri"}
    assert found["left_out"] == [f"{booked['ct']}/jobs: cannot be read now (Not a directory)"]
