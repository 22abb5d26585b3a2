"""Requests to a predictor server at some concurrency, and memory of processes, for :mod:`benchmarks.serving`."""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from nnunet_jobs import processes

_BOUNDARY = "benchmark"
_TIMEOUT_S = 600
_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Requests of one kind. ``seconds``: of each; ``total_s``: from the first to the last; ``peak_mib``: of the processes that did it."""

    seconds: Sequence[float]
    total_s: float
    peak_mib: float
    equal: bool
    note: str = ""

    @property
    def per_s(self) -> float:
        """Throughput."""
        return len(self.seconds) / self.total_s

    def quantile(self, share: float) -> float:
        """Nearest-rank quantile of the seconds of one request."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)]


def ask(uds: Path, path: str, body: bytes | None = None) -> bytes:
    """One request on a connection of its own, as a shell script's.

    Raises:
        RuntimeError: Any answer but 200.
    """
    connection = http.client.HTTPConnection("predictors", timeout=_TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(_TIMEOUT_S)
        connection.sock.connect(str(uds))
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"} if body else {}
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:500]!r}")
        return content
    finally:
        connection.close()


def form(image: Path) -> bytes:
    """The body of a request."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
    return head.encode() + image.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()


def load(uds: Path, path: str, images: Sequence[Path], *, requests: int, concurrency: int) -> tuple[list[float], float, list[bytes]]:
    """Requests over all images in turn: (seconds of each, seconds altogether, answers in the order of the requests)."""
    bodies = [form(image) for image in images]

    def one(number: int) -> tuple[float, bytes]:
        begun = time.perf_counter()
        content = ask(uds, path, bodies[number % len(bodies)])
        return time.perf_counter() - begun, content

    with ThreadPoolExecutor(concurrency) as pool:
        begun = time.perf_counter()
        done = list(pool.map(one, range(requests)))
        total = time.perf_counter() - begun
    return [seconds for seconds, _ in done], total, [content for _, content in done]


def peak_mib(pid: int) -> float:
    """Most memory that a process has had so far, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


@contextlib.contextmanager
def sampled_memory(pids: Callable[[], Iterable[int]]) -> Iterator[list[float]]:
    """Looks four times a second at the memory of these processes; the most in MiB is the list's only entry afterwards."""
    found = [0.0]
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_SAMPLE_S):
            found[0] = max(found[0], processes.exact_memory_mib(list(pids())))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def below_me() -> list[int]:
    """This process's descendants."""
    return processes.descendants(os.getpid())


def mentioning(text: str) -> list[int]:
    """Processes with this in their command line; a job's are nobody's children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
