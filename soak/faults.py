"""Injects the faults of the soak: kills of every kind of process, missing storage, a full disk, a clock that jumps."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from devtools.stack_components import CORE
from nnunet_jobs.contract.job.state import Phase
from soak.site import Site

_OUTAGE_S = (20.0, 60.0)
_FULL_S = (30.0, 60.0)
_HOUR_S = 3600
_LONG = ("storage away", "disk full", "clock jumps")


class Faults:
    """Draws and injects one fault after the other. ``done`` counts them by kind, ``missing`` has those that are
    impossible here.

    Args:
        site: A running site.
        draw: Source of all random choices.
    """

    def __init__(self, site: Site, draw: random.Random) -> None:
        self.site = site
        self.draw = draw
        self.done: Counter[str] = Counter()
        self.missing: dict[str, str] = {}
        self._end_long: Callable[[], None] | None = None
        self._long_until = 0.0
        self._next_long = time.monotonic() + draw.uniform(20, 40)
        self._turn = 0
        self._killed_at = dt.datetime.now(dt.UTC)
        if not site.mounted:
            self.missing["disk full"] = "mounting small disks needs root"
        if not site.clock_can_jump:
            self.missing["clock jumps"] = "needs gcc"

    def one(self) -> None:
        """Kill one process, and sometimes start or end a longer fault."""
        self.tick()
        if self._end_long is None and time.monotonic() >= self._next_long:
            self._begin_long()
        kinds = [self._kill_component, self._kill_task, self._kill_runner, self._kill_step]
        self.draw.shuffle(kinds)
        for kind in kinds:
            if (name := kind()) is not None:
                self.done[name] += 1
                return

    def tick(self) -> None:
        """End a longer fault that is over, and restart Airflow's ended components, as a service manager does."""
        if self._end_long is not None and time.monotonic() >= self._long_until:
            self._end_long()
            self._end_long = None
            self._next_long = time.monotonic() + self.draw.uniform(15, 30)
        self.site.stack.restart_ended()

    def stop(self) -> None:
        """End a longer fault now."""
        self._long_until = 0.0
        self.tick()

    @property
    def kills(self) -> int:
        """Return how many processes were killed."""
        return sum(count for name, count in self.done.items() if name not in _LONG)

    # --- kills --------------------------------------------------------------------------------------------------
    def _kill_component(self) -> str | None:
        """Kill a component of Airflow, if all of them have become ready since the last time; otherwise none would ever start."""
        name = self.draw.choice(CORE).name
        if not all(component.is_ready(self.site.stack.client, self._killed_at) for component in CORE):
            return None
        self._killed_at = dt.datetime.now(dt.UTC)
        with contextlib.suppress(OSError, KeyError):
            self.site.stack.kill(name)
            self.site.stack.restart_ended()
            return name
        return None

    def _kill_task(self) -> str | None:
        """Kill a task's process or its supervisor, which is a grandchild or great-grandchild of the scheduler."""
        with contextlib.suppress(OSError, KeyError):
            scheduler = self.site.stack.pid("scheduler")
            mine = {pid: _parent(pid) for pid in self.site.stack.processes()}
            tasks = [pid for pid, parent in mine.items() if mine.get(parent) == scheduler]
            return self._kill(tasks, "task")
        return None

    def _kill_runner(self) -> str | None:
        return self._kill(self._runners(), "runner")

    def _kill_step(self) -> str | None:
        children = [child for runner in self._runners() for child in _children(runner) if "step" in _command(child)]
        return self._kill(children, "step")

    def _runners(self) -> list[int]:
        found = []
        for job in self.site.jobs():
            with contextlib.suppress(OSError, ValueError):
                state = job.state()
                if state.phase in (Phase.WAITING, Phase.RUNNING) and str(job.path) in _command(state.pid):
                    found.append(state.pid)
        return found

    def _kill(self, pids: list[int], name: str) -> str | None:
        if not pids:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.draw.choice(sorted(pids)), signal.SIGKILL)
            return name
        return None

    # --- longer faults ------------------------------------------------------------------------------------------
    def _begin_long(self) -> None:
        names = [name for name in _LONG if name not in self.missing]
        name = names[self._turn % len(names)]
        self._turn += 1
        begin = {"storage away": self._away, "disk full": self._full, "clock jumps": self._jump}[name]
        length, self._end_long = begin()
        self._long_until = time.monotonic() + length
        self.done[name] += 1

    def _away(self) -> tuple[float, Callable[[], None]]:
        jobs = Path(self.site.workspace.jobs)
        place = jobs.with_name("elsewhere")

        def back() -> None:
            if jobs.exists():
                raise RuntimeError(f"{jobs} was created while its share was missing: {os.listdir(jobs)}")
            os.rename(place, jobs)

        os.rename(jobs, place)
        return self.draw.uniform(*_OUTAGE_S), back

    def _full(self) -> tuple[float, Callable[[], None]]:
        ballast = [folder / "ballast" for folder in self.site.mounted]
        for file in ballast:
            with open(file, "ab", buffering=0) as out, contextlib.suppress(OSError):
                while out.write(b"\0" * 65536) == 65536:
                    pass
                while out.write(b"\0" * 4096):
                    pass

        def free() -> None:
            for file in ballast:
                file.unlink()

        return self.draw.uniform(*_FULL_S), free

    def _jump(self) -> tuple[float, Callable[[], None]]:
        self.site.clock.write_text(str(self.draw.choice((-_HOUR_S, _HOUR_S))))

        def right() -> None:
            self.site.clock.write_text("0")

        return self.draw.uniform(10, 20), right


def _parent(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).ppid())
    return 0


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""
