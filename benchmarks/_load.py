"""Sends concurrent requests to a predictor server and measures memory, for :mod:`benchmarks.serving`."""

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
    """Holds the times of requests of one kind, ``total_s`` from the first to the last, and the peak memory of the processes."""

    seconds: Sequence[float]
    total_s: float
    peak_mib: float
    equal: bool
    note: str = ""

    @property
    def per_s(self) -> float:
        """Return the throughput."""
        return len(self.seconds) / self.total_s

    def quantile(self, share: float) -> float:
        """Return the nearest-rank quantile of the seconds of one request."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)]


def ask(uds: Path, path: str, body: bytes | None = None) -> bytes:
    """Send one request on a new connection, as a shell script would.

    Raises:
        RuntimeError: The status is not 200.
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
    """Return the body of a request."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.nii.gz"\r\n\r\n'
    return head.encode() + image.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()


def load(uds: Path, path: str, images: Sequence[Path], *, requests: int, concurrency: int) -> tuple[list[float], float, list[bytes]]:
    """Send requests for all images in turn, and return the seconds of each, the total seconds, and the answers in order."""
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
    """Return the most memory that a process has had, as counted by the kernel."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has ended")


@contextlib.contextmanager
def sampled_memory(pids: Callable[[], Iterable[int]]) -> Iterator[list[float]]:
    """Measure the memory of these processes four times a second. The list's only entry is the maximum in MiB."""
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
    """Return this process's descendants."""
    return processes.descendants(os.getpid())


def mentioning(text: str) -> list[int]:
    """Return processes with this string in their command line, because those of a job are no child processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
