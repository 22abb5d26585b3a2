"""Two teams under a real scheduler on a host with two CPU slots: one floods it, the other comes later and is not held up."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api.rest_client import RestError, wait_until
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.usage import Usage, read_usage
from nnunet_jobs.devices.leases import Ledger
from support.stack import Site, job_processes
from support.teams import FLOOD_SLOTS, LATE

pytestmark = pytest.mark.e2e

CPU_SLOTS = 2


def used(site: Site, team: str) -> list[Usage]:
    """What a team has booked in its own workspace, in the order of the ends."""
    found, damaged = read_usage(site.root / team / "jobs", since=dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    assert damaged == 0
    return sorted(found, key=lambda usage: dt.datetime.fromisoformat(usage.ended))


def gate_of(job: JobDir) -> Path:
    """The file that a job of tests/e2e/dags/teams.py waits for."""
    return Path(json.loads(job.spec().params["source"])["until"])


def trigger(site: Site, dag_id: str) -> str:
    """Start a run; asks again where the site's SQLite is locked by thirty tasks at once."""
    run_id = ""

    def done() -> bool:
        nonlocal run_id
        try:
            run_id = site.stack.client.trigger(dag_id)
        except RestError as error:
            if "Database error" not in str(error):
                raise
        return bool(run_id)

    wait_until(done, timeout_s=60, what=lambda: f"{dag_id} cannot be triggered")
    return run_id


def test_a_flood_of_one_team_does_not_hold_up_another(site: Site) -> None:
    client, ledger = site.stack.client, Ledger(site.workspace.leases)
    teams = load_teams(site.root / "include" / "teams").configs
    for name, team in teams.items():
        assert isinstance(team.pool.slots, int)
        client.set_pool(team.pool_name, team.pool.slots)
        client.wait_for_dag(name)

    flood = trigger(site, "flood")
    queued = FLOOD_SLOTS - CPU_SLOTS
    wait_until(lambda: ledger.waiting() == queued, timeout_s=120, what=lambda: f"{ledger.waiting()} wait: {client.states('flood', flood)}")
    late = trigger(site, "late")
    wait_until(
        lambda: ledger.waiting() == queued + LATE, timeout_s=90, what=lambda: f"{ledger.waiting()} wait: {client.states('late', late)}"
    )
    computing = ledger.holders()
    assert [holder.team for holder in computing] == ["flood"] * CPU_SLOTS
    jobs = [JobDir(path) for path in (site.root / "flood" / "jobs").glob("[a-z]*")]
    assert len(jobs) == FLOOD_SLOTS, "the team's pool caps what is in flight, deferred tasks too"

    # What computes may end, and nothing else of the flood: a flood that took both freed slots would hold up the late jobs forever.
    gates = [gate_of(JobDir(site.root / "flood" / "jobs" / holder.owner)) for holder in computing]
    for gate in [*gates, *(site.gates / f"late-{number}" for number in range(LATE))]:
        gate.touch()
    assert client.wait_for_run("late", late, timeout_s=120) == "success", client.states("late", late)

    ended = used(site, "late")
    assert {usage.job for usage in used(site, "flood")} == {holder.owner for holder in computing}
    assert [(usage.team, usage.outcome, usage.slot, usage.attempt) for usage in ended] == [("late", "done", True, 1)] * LATE
    assert all(usage.waited_s > 0 and usage.computed_s > 0 for usage in ended)

    client.request("PATCH", f"dags/flood/dagRuns/{flood}", json={"state": "failed"})
    jobs = [JobDir(path) for path in (site.root / "flood" / "jobs").glob("[a-z]*")]
    wait_until(
        lambda: not ledger.holders() and not ledger.waiting() and not any(job_processes(job) for job in jobs),
        timeout_s=90,
        what=lambda: f"left over: {ledger.holders()}, {client.states('flood', flood)}",
    )
