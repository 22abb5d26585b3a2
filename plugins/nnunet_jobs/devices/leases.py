"""Keeps the ledger of device leases on this host by kernel locks, so that a lease ends exactly when its processes end.

    alloc.lock                  mutex; held for a fraction of a millisecond by each reader or writer of the ledger
    leases/<n>.json             one file per lease, flocked by its holder and by every process that inherited it
    tickets/<n>.json            one file per waiting job, flocked by it; the number is its place in the queue
    turns/team-<name>           number of the newest lease of each team, by which teams take turns
    quarantine/<device>.json    devices not to be used for a while; see quarantine.py

A lock belongs to the open file, not to a process: the trainer inherits it, so a lease lasts exactly as long as any process that may
use the device, suspended ones included. A file without a lock is of a dead holder, and the next reader removes it. Another process
takes a lease over by writing its own lease that follows it; while both exist, only the follower counts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from nnunet_jobs.contract.job.liveness import read_counter, write_counter
from nnunet_jobs.contract.storage.file_systems import require_local
from nnunet_jobs.contract.storage.files import locked
from nnunet_jobs.devices.allocator import Allocator, Device, Request
from nnunet_jobs.devices.lease import Holder, Lease
from nnunet_jobs.devices.lease_entries import Unreadable, change, content, is_full, live_entries, new_entry, rewrite
from nnunet_jobs.devices.queue_order import QueueEntry, order_of_service
from nnunet_jobs.processes import pid_namespace

log = logging.getLogger("nnunet_jobs")

T = TypeVar("T")

_FULL_S = 0.5  # seconds between two attempts to write to a full disk
MAX_OVERTAKEN = 3
"""How often later, smaller jobs may overtake a waiting bigger one. After that, all jobs behind it wait."""

ASLEEP_S = 30.0
"""A waiting job that has not asked for so long is skipped until it asks again."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A ticket as read from the ledger."""

    number: int
    path: Path
    overtaken: int
    polls: int
    request: Request


class Ticket:
    """A place in a ledger's queue."""

    def __init__(self, ledger: Ledger, number: int, request: Request) -> None:
        self.ledger = ledger
        self.number = number
        self.request = request
        self.trouble = ""
        """Why no device can be leased now although it may be free; empty if nothing is wrong."""
        self._seen: dict[int, tuple[int, float]] = {}

    def try_acquire(self, devices: Sequence[Device], *, poll: Callable[[], None] | None = None) -> Lease | None:
        """See :meth:`Ledger.try_acquire`."""
        return self.ledger.try_acquire(self, devices, poll=poll)

    def sleeps(self, number: int, polls: int) -> bool:
        """Whether an earlier waiting job has not asked for long, by our own clock, since a suspended process must not block others."""
        now = time.monotonic()
        before, since = self._seen.get(number, (-1, now))
        if before != polls:
            since = now
        self._seen[number] = (polls, since)
        return now - since > ASLEEP_S


class Ledger:
    """Manages the lease directory of one host.

    Raises:
        ConfigError: The directory is on a network file system.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        for name in ("leases", "tickets", "turns"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        require_local(self.folder, field="leases")

    # --- reading ------------------------------------------------------------------------------------------------
    def holders(self) -> list[Holder]:
        """Return live leases of all kinds."""
        with self._mutex():
            return self._holders()

    def waiting(self) -> int:
        """Return the number of waiting jobs."""
        with self._mutex():
            return len(self._waiters())

    # --- waiting and taking -------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def ticket(self, request: Request, *, poll: Callable[[], None] | None = None) -> Iterator[Ticket]:
        """Take a place in the queue. It ends with the process, so a dead process does not block others."""
        number, path, fd = self._with_room(lambda: self._new_ticket(request, poll), poll)
        try:
            yield Ticket(self, number, request)
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)

    def _new_ticket(self, request: Request, poll: Callable[[], None] | None) -> tuple[int, Path, int]:
        with self._mutex(poll):
            number = self._next_number()
            path = self.folder / "tickets" / f"{number:020d}.json"
            return number, path, new_entry(path, {"request": asdict(request), "overtaken": 0, "polls": 0})

    def _with_room(self, change: Callable[[], T], poll: Callable[[], None] | None) -> T:
        """Make a change to the ledger, retrying until its disk has room, and return its result."""
        told = False
        while True:
            try:
                return change()
            except OSError as error:
                if poll is None or not is_full(error):
                    raise
                if not told:
                    told = True
                    log.warning("%s: no space left for the lease ledger; waiting until there is room", self.folder)
            poll()
            time.sleep(_FULL_S)

    def try_acquire(self, ticket: Ticket, devices: Sequence[Device], *, poll: Callable[[], None] | None = None) -> Lease | None:
        """Lease the devices if they are free and it is this ticket's turn, else return None. ``devices`` are of the request's kind.

        None also while the ledger's disk is full, or a live holder's entry cannot be read, since it is not known then what is free.
        """
        try:
            return self._try_acquire(ticket, devices, poll)
        except Unreadable as error:
            ticket.trouble = str(error)
        except OSError as error:
            if not is_full(error):
                raise
            ticket.trouble = f"no space left in {self.folder} for the lease ledger; free some"
        return None

    def _try_acquire(self, ticket: Ticket, devices: Sequence[Device], poll: Callable[[], None] | None) -> Lease | None:
        request = ticket.request
        with self._mutex(poll):
            ticket.trouble = ""
            allocator = Allocator(devices)
            holders = self._holders(strict=True)
            for holder in holders:
                allocator.reserve([holder.device], holder.memory_mib)
            blocked: list[_Waiter] = []
            for waiter in self._before(ticket, [holder for holder in holders if holder.device in allocator.devices]):
                allocated = allocator.allocate(waiter.request)
                if allocated is None:
                    blocked.append(waiter)
                else:
                    allocator.reserve(allocated, waiter.request.memory_mib)  # that job takes them at its next poll
            allocated = allocator.allocate(request)
            if allocated is None:
                return None
            delayed = [waiter for waiter in blocked if any(waiter.request.could_use(device) for device in allocator.named(allocated))]
            if any(waiter.overtaken >= MAX_OVERTAKEN for waiter in delayed):
                return None
            for waiter in delayed:
                change(waiter.path, overtaken=waiter.overtaken + 1)
            return self._write_leases(allocated, memory_mib=request.memory_mib, owner=request.owner, team=request.team)

    def adopt(self, numbers: Sequence[int], devices: Sequence[str], *, owner: str, poll: Callable[[], None] | None = None) -> Lease | None:
        """Make leases that follow another process's, which may then release its own; return None when it has already done so.

        All of them are taken over or none; the devices are never free or leased twice.
        """
        with self._mutex(poll):
            live = {entry.number: entry for entry in self._entries(strict=True)}
            followed = {entry.follows for entry in live.values()}
            found = [live[number] for number in numbers if number in live and number not in followed]
            if [(entry.device, entry.owner) for entry in found] != [(device, owner) for device in devices]:
                return None
            return self._write_leases(devices, memory_mib=found[0].memory_mib, owner=owner, team=found[0].team, follows=numbers)

    def is_adopted(self, lease: Lease) -> bool:
        """Whether a live process has taken this lease over."""
        with self._mutex():
            return set(lease.numbers) <= {entry.follows for entry in self._entries()}

    def note_session(self, lease: Lease, session: int) -> None:
        """Record the session of a lease's processes, to distinguish them from foreign processes on the GPU."""
        with self._mutex():
            for fd in lease.fds:
                if (data := content(fd)) is not None:
                    rewrite(fd, {**data, "sessions": [*data["sessions"], session]})

    # --- private, under the mutex -------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _mutex(self, poll: Callable[[], None] | None = None) -> Iterator[None]:
        with locked(self.folder / "alloc.lock", poll=poll, interval=0.002):
            yield

    def _before(self, ticket: Ticket, holders: Sequence[Holder]) -> list[_Waiter]:
        """Return the active waiting jobs before a ticket, for the same kind of device, and record that the ticket asks."""
        waiting: dict[int, _Waiter] = {}
        for waiter in self._waiters():
            if waiter.number == ticket.number:
                change(waiter.path, polls=waiter.polls + 1)
            elif waiter.request.kind != ticket.request.kind or ticket.sleeps(waiter.number, waiter.polls):
                continue
            waiting[waiter.number] = waiter
        if ticket.number not in waiting:  # our own entry cannot be read; no other process may write it
            waiting[ticket.number] = _Waiter(ticket.number, self.folder / "tickets" / f"{ticket.number:020d}.json", 0, 0, ticket.request)
        entries = [QueueEntry(number=item.number, team=item.request.team, count=item.request.count) for item in waiting.values()]
        served = {team: read_counter(self._last_served(team)) for team in {entry.team for entry in entries}}
        order = order_of_service(entries, Counter(holder.team for holder in holders), served)
        return [waiting[number] for number in order[: order.index(ticket.number)]]

    def _last_served(self, team: str) -> Path:
        return self.folder / "turns" / f"team-{team}"

    def _next_number(self) -> int:
        path = self.folder / "next"
        number = read_counter(path)
        taken = [int(item.stem) for name in ("leases", "tickets") for item in (self.folder / name).glob("[0-9]*.json")]
        number = max([number, *taken]) + 1
        write_counter(path, number)
        return number

    def _entries(self, *, strict: bool = False) -> list[Holder]:
        """Return live leases. One that cannot be read is left out, or, if ``strict``, raises :class:`Unreadable`."""
        found = []
        for path, data in live_entries(self.folder / "leases"):
            try:
                values = {**(data or {}), "number": int(path.stem)}
                found.append(Holder(**{**values, "sessions": tuple(values["sessions"])}))
            except (ValueError, TypeError, KeyError):
                if strict:
                    raise Unreadable(f"{path} has a live holder and cannot be read; waiting until it ends") from None
        return found

    def _holders(self, *, strict: bool = False) -> list[Holder]:
        """Return the entries that count: during a handover, only the newer one."""
        entries = self._entries(strict=strict)
        followed = {entry.follows for entry in entries}
        return [entry for entry in entries if entry.number not in followed]

    def _waiters(self) -> list[_Waiter]:
        """Return live tickets. One that cannot be read is left out, so that no job waits for it."""
        found = []
        for path, data in live_entries(self.folder / "tickets"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                values = data or {}
                request = Request(**{**values["request"], "exclude": tuple(values["request"]["exclude"])})
                found.append(_Waiter(int(path.stem), path, values["overtaken"], values["polls"], request))
        return found

    def _write_leases(
        self, devices: Sequence[str], *, memory_mib: int | None, owner: str, team: str, follows: Sequence[int | None] = ()
    ) -> Lease:
        entry: dict[str, Any] = {
            "memory_mib": memory_mib,
            "owner": owner,
            "team": team,
            "pid": os.getpid(),
            "pid_namespace": pid_namespace(),
            "sessions": [],
        }
        numbers: list[int] = []
        paths: list[Path] = []
        fds: list[int] = []
        try:
            for device, followed in zip(devices, follows or [None] * len(devices), strict=True):
                numbers.append(self._next_number())
                paths.append(self.folder / "leases" / f"{numbers[-1]:020d}.json")
                fds.append(new_entry(paths[-1], {**entry, "device": device, "follows": followed}))
                if followed is None:  # a handover is not a new turn
                    write_counter(self._last_served(team), numbers[-1])
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            for fd in fds:
                os.close(fd)
            raise
        return Lease(devices=tuple(devices), numbers=tuple(numbers), fds=tuple(fds))
