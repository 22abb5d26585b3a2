"""What a command takes while it runs: seconds, and the most memory that it and its children held at once."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_EVERY_S = 0.1


def measured(command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout_s: float = 1800) -> tuple[float, float]:
    """Run a command to its end.

    Returns:
        (seconds, MiB). Pages that processes share are counted once (PSS), every 0.1 s, so a shorter peak may be missed.

    Raises:
        subprocess.CalledProcessError: it failed; its last words are in the message's output.
    """
    begin, most = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                if time.perf_counter() - begin > timeout_s:
                    raise TimeoutError(f"{command[0]} took more than {timeout_s} s")
                most = max(most, tree_kib(process.pid))
                time.sleep(_EVERY_S)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - begin
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output.read()[-3000:])
    return seconds, most / 1024


def tree_kib(pid: int) -> int:
    """Proportional memory of a process and all below it, in KiB; 0 for one that has ended."""
    total, todo = 0, [pid]
    while todo:
        here = todo.pop()
        try:
            lines = Path(f"/proc/{here}/smaps_rollup").read_text().splitlines()
            todo += [int(child) for task in Path(f"/proc/{here}/task").iterdir() for child in (task / "children").read_text().split()]
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
