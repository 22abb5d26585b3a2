"""The inside of a process that :mod:`nnunet_jobs.sandbox.workers` starts: one JSON request a line in, JSON messages a line out.

While a task works, it may write single bytes that say that it lives, and notes::

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
_HEADROOM = 768 << 20  # bytes of address space beside the voxels: libraries that are loaded when their first file comes
_MIB = 1 << 20
_out = -1  # file descriptor of the answers


def main(argv: list[str], find: Callable[[str], Task]) -> int:
    """Answer requests until stdin ends.

    Args:
        argv: File descriptor of the answers, and the parent's pid.
        find: A task by its name; its imports come before the memory limit.
    """
    global _out
    _out = int(argv[0])
    die_with_parent(signal.SIGKILL, parent=int(argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent, which ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    warnings.simplefilter("ignore")
    while True:
        request = json.loads(requests.get())
        _say(_answer(request, find))


def alive() -> None:
    """Tell the parent that this process lives."""
    os.write(_out, ALIVE)


def note(message: dict[str, Any]) -> None:
    """Tell the parent how far the task is, before its answer."""
    _say({"note": message})


class MemoryLimit:
    """The limit of this process's address space, raised before voxels are read and never above the budget.

    Address space is what the kernel can refuse before anything is used; resident memory can only be noticed after.

    Args:
        budget: Bytes that a task may reserve.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._base = _mapped()
        self._reserved = 0

    def begin(self) -> None:
        """A new task: nothing is reserved."""
        self._reserved = 0
        self._limit()

    def reserve(self, size: int) -> None:
        """Let ``size`` bytes more be used.

        Raises:
            MemoryError: More than the budget.
        """
        self._reserved += size
        if self._reserved > self.budget:
            raise MemoryError(f"{self._reserved // _MIB} MiB where {self.budget // _MIB} MiB may be used")
        self._limit()

    def _limit(self) -> None:
        _soft_limit(resource.RLIMIT_AS, self._base + _HEADROOM + self._reserved)


def _receive(requests: queue.SimpleQueue[bytes]) -> None:
    """Take requests, and end this process with its parent whatever the main thread is busy with."""
    try:
        for line in sys.stdin.buffer:
            requests.put(line)
    finally:  # whatever ended the reading: without this thread nobody would end the process
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
    except Exception as error:  # the text of a library's error may hold header values and file names; its type does not
        return {"error": "its content made the reader fail", "kind": type(error).__name__}


def _say(message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(_out, line) :]


def _limit(memory_mib: int, timeout_s: float) -> None:
    """Soft limits beyond what this process uses already; SIGXCPU ends a loop in a library that lets no other thread run."""
    _soft_limit(resource.RLIMIT_AS, _mapped() + (memory_mib << 20))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _soft_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + timeout_s) + 2)


def _soft_limit(kind: int, value: int) -> None:
    """Set a limit of this process, never above the hard limit that it was started with."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _mapped() -> int:
    """Bytes of address space that this process uses."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
