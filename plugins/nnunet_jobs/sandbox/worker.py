"""Runs in a process that :mod:`nnunet_jobs.sandbox.workers` starts: reads one JSON request a line, writes one JSON message a line.

During a task, it may write single bytes as heartbeats, and notes::

    parent  {"task": ..., "data": {...}, "timeout_s": ..., "memory_mib": ...}
    worker  {"begun": true}
    worker  {"note": {...}}
    worker  ...{"result": {...}}  or  {"error": ...}
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from nnunet_jobs.processes import die_with_parent

Task = Callable[[dict[str, Any]], dict[str, Any]]
ALIVE = b"."
_HEADROOM = 768 << 20  # bytes of address space beside the voxels, for libraries that are loaded with their first file
_MIB = 1 << 20
_out = -1  # file descriptor of the answers


def main(argv: list[str], find: Callable[[str], Task]) -> int:
    """Answer requests until stdin ends.

    Args:
        argv: File descriptor of the answers, and the parent's pid.
        find: Finds a task by its name; its imports happen before the memory limit is set.
    """
    global _out
    _out = int(argv[0])
    die_with_parent(signal.SIGKILL, parent=int(argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C and ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    warnings.simplefilter("ignore")
    while True:
        request = json.loads(requests.get())
        _say(_answer(request, find))


def alive() -> None:
    """Send a heartbeat to the parent."""
    os.write(_out, ALIVE)


def note(message: dict[str, Any]) -> None:
    """Send a note on the task's progress to the parent, before the answer."""
    _say({"note": message})


class MemoryLimit:
    """Limits this process's address space; the limit is raised before voxels are read, and never above the budget.

    The kernel can refuse address space before memory is used; resident memory can only be measured afterwards.

    Args:
        budget: Bytes that a task may reserve.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._base = _mapped()
        self._reserved = 0

    def begin(self) -> None:
        """Begin a new task, with nothing reserved."""
        self._reserved = 0
        self._limit()

    def reserve(self, size: int) -> None:
        """Allow ``size`` more bytes.

        Raises:
            MemoryError: It exceeds the budget.
        """
        self._reserved += size
        if self._reserved > self.budget:
            raise MemoryError(f"{self._reserved // _MIB} MiB where {self.budget // _MIB} MiB may be used")
        self._limit()

    def _limit(self) -> None:
        _soft_limit(resource.RLIMIT_AS, self._base + _HEADROOM + self._reserved)


def _receive(requests: queue.SimpleQueue[bytes]) -> None:
    """Receive requests, and end this process with its parent even if the main thread is busy."""
    try:
        for line in sys.stdin.buffer:
            requests.put(line)
    finally:  # in any case, since no other thread would end the process
        os._exit(0)


def _answer(request: dict[str, Any], find: Callable[[str], Task]) -> dict[str, Any]:
    try:
        task = find(request["task"])
        _say({"begun": True})
        _limit(request["memory_mib"], request["timeout_s"])
        return {"result": task(request["data"])}
    except MemoryError:
        return {"error": f"it needs more than {request['memory_mib']} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except OSError as error:
        reason = f" ({os.strerror(error.errno)})" if error.errno else ""
        return {"error": f"the system or a library refused to read it{reason}", "errno": error.errno, "kind": type(error).__name__}
    except Exception as error:  # a library's message may hold header values and file names; its type does not
        return {"error": "its content made the reader fail", "kind": type(error).__name__}


def _say(message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(_out, line) :]


def _limit(memory_mib: int, timeout_s: float) -> None:
    """Set soft limits beyond what this process uses already; SIGXCPU ends a loop in a library that blocks other threads."""
    _soft_limit(resource.RLIMIT_AS, _mapped() + (memory_mib << 20))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s) + 2)


def _soft_limit(kind: int, value: int) -> None:
    """Set a limit of this process, never above the hard limit that it was started with."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _mapped() -> int:
    """Return the bytes of address space that this process uses."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
