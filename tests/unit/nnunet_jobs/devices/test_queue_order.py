"""Teams take turns at the lease ledger: who is served next, alone and with a real ledger."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices.allocator import Device, Request
from nnunet_jobs.devices.lease import Lease
from nnunet_jobs.devices.leases import MAX_OVERTAKEN, Ledger, Ticket
from nnunet_jobs.devices.queue_order import QueueEntry, order_of_service
from support.jobs import make_spec


def entries(*teams: str) -> list[QueueEntry]:
    return [QueueEntry(number=number, team=team, count=1) for number, team in enumerate(teams, 1)]


def test_without_teams_the_first_come_is_the_first_served() -> None:
    assert order_of_service(entries("", "", "", ""), {"": 3}, {"": 17}) == [1, 2, 3, 4]


def test_two_teams_alternate_however_many_one_of_them_sends() -> None:
    assert order_of_service(entries("a", "a", "a", "a", "b", "b"), {}, {}) == [1, 5, 2, 6, 3, 4]


def test_what_a_team_holds_counts_before_what_it_waits_for() -> None:
    assert order_of_service(entries("a", "a", "b", "b"), {"a": 2}, {}) == [3, 4, 1, 2]


def test_of_teams_that_hold_alike_the_one_served_longest_ago_goes_first() -> None:
    assert order_of_service(entries("a", "a", "b", "c"), {}, {"a": 30, "b": 20, "c": 10}) == [4, 3, 1, 2]


def test_a_job_of_two_devices_counts_twice() -> None:
    wide = QueueEntry(number=1, team="a", count=2)
    assert order_of_service(
        [wide, *(QueueEntry(number=number, team=team, count=1) for number, team in ((2, "a"), (3, "b"), (4, "b")))], {}, {}
    ) == [
        1,
        3,
        4,
        2,
    ]


# --- a real ledger --------------------------------------------------------------------------------------------------
class Queue:
    """Jobs that wait at one ledger, asked in the worst order for fairness: the flood's first."""

    def __init__(self, folder: Path, gpus: int) -> None:
        self.ledger = Ledger(folder)
        self.devices = [Device(uuid=f"GPU-{number}", total_mib=24, free_mib=24) for number in range(gpus)]
        self.waiting: list[tuple[Ticket, contextlib.ExitStack]] = []
        self.running: list[tuple[str, Lease]] = []
        self.started: list[str] = []

    def join(self, team: str, jobs: int, *, count: int = 1, memory_mib: int | None = None) -> None:
        for _ in range(jobs):
            stack = contextlib.ExitStack()
            request = Request(kind="cuda", owner="job", team=team, count=count, memory_mib=memory_mib)
            self.waiting.append((stack.enter_context(self.ledger.ticket(request)), stack))

    def serve(self) -> None:
        """Every waiter asks until all devices are taken or nobody gets anything."""
        served = True
        while served and len(self.ledger.holders()) < len(self.devices):
            served = False
            for entry in list(self.waiting):
                ticket, stack = entry
                lease = ticket.try_acquire(self.devices)
                if lease is not None:
                    served = True
                    self.started.append(ticket.request.team)
                    self.running.append((ticket.request.team, lease))
                    self.waiting.remove(entry)
                    stack.close()

    def finish(self) -> str:
        """The oldest running job ends."""
        team, lease = self.running.pop(0)
        lease.release()
        return team

    def close(self) -> None:
        for _, stack in self.waiting:
            stack.close()
        while self.running:
            self.finish()


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_fifty_waiting_jobs_of_one_team_do_not_hold_up_another(tmp_path: Path, gpus: int) -> None:
    queue = Queue(tmp_path / "leases", gpus)
    queue.join("flood", 50)
    queue.serve()
    assert queue.started == ["flood"] * gpus, "nobody else was there"
    queue.join("late", 4)
    while "late" in {ticket.request.team for ticket, _ in queue.waiting}:
        queue.finish()
        queue.serve()
    later = queue.started[gpus:]
    # At most one job of the flood for each of the late ones, and no fewer: the flood is not starved either.
    assert later.count("late") == 4
    assert later.count("flood") <= 4
    assert len(queue.waiting) >= 50 - gpus - 4
    for _ in range(3 * gpus):
        queue.finish()
        queue.serve()
    assert queue.started[-1] == "flood", "the flood goes on when the others are done"
    queue.close()
    assert queue.ledger.holders() == []


def test_three_teams_share_evenly_and_a_latecomer_does_not_catch_up_on_the_past(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "leases", 2)
    for team in ("a", "b", ""):
        queue.join(team, 9)
    queue.serve()
    for _ in range(13):
        queue.finish()
        queue.serve()
    assert set(Counter(queue.started).values()) == {5}, Counter(queue.started)
    queue.join("new", 6)
    before = len(queue.started)
    for _ in range(8):
        queue.finish()
        queue.serve()
    assert Counter(queue.started[before:]) == {"a": 2, "b": 2, "": 2, "new": 2}
    queue.close()


def test_a_big_job_is_still_overtaken_only_so_often_by_other_teams(tmp_path: Path) -> None:
    """A job that wants both GPUs while another team's small ones keep one of them busy at any moment."""
    queue = Queue(tmp_path / "leases", 2)
    queue.join("small", 2)
    queue.serve()
    queue.join("big", 1, count=2)
    queue.join("small", 20)
    for _ in range(20):
        queue.finish()
        queue.serve()
        if "big" in queue.started:
            break
    assert "big" in queue.started
    assert queue.started.index("big") <= 2 + MAX_OVERTAKEN + 1
    queue.close()


def test_a_turn_is_remembered_when_nothing_runs(tmp_path: Path) -> None:
    """With one GPU, both teams hold nothing at the moment of choice; only memory keeps the older ticket from winning each time."""
    queue = Queue(tmp_path / "leases", 1)
    queue.join("a", 6)
    queue.join("b", 3)
    queue.serve()
    for _ in range(5):
        queue.finish()
        queue.ledger = Ledger(tmp_path / "leases")  # another process, another runner
        queue.serve()
    assert queue.started == ["a", "b"] * 3
    queue.close()


def test_a_teams_name_is_a_name_and_no_path(workspace: Workspace) -> None:
    good = make_spec(workspace, "labelled").to_json()
    assert JobSpec.from_json({**good, "labels": {"team": "radiology_2"}}).team == "radiology_2"
    assert JobSpec.from_json(good).team == ""
    for name in ("../../etc", "Radiology", "a b", "x" * 65):
        with pytest.raises(ConfigError, match="labels team="):
            JobSpec.from_json({**good, "labels": {"team": name}})
