"""The inside of a process that :mod:`nnunet_jobs.sandbox.workers` starts: one JSON request a line in, one JSON answer a line out."""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

Task = Callable[[dict[str, Any]], dict[str, Any]]


def main(argv: list[str], find: Callable[[str], Task]) -> int:
    """Answer on the file descriptor ``argv[0]`` until stdin ends. ``find``: a task by name; its imports come before the memory limit."""
    answers = int(argv[0])
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    warnings.simplefilter("ignore")
    while True:
        request = json.loads(requests.get())
        answer = _answer(request, find)
        line = json.dumps(answer).encode() + b"\n"
        while line:
            line = line[os.write(answers, line) :]


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


def _limit(memory_mib: int, timeout_s: float) -> None:
    """Soft limits beyond what this process uses already; SIGXCPU ends a loop in a library that lets no other thread run."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (memory_mib << 20), resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
