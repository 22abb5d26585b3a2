"""Atomic writes and kernel locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_jobs.contract.storage.files import content_hash, locked, read_json, try_lock, write_atomic, write_json

WRITER = """
import sys
from pathlib import Path
from nnunet_jobs.contract.storage.files import write_atomic
print("ready", flush=True)
n = 0
while True:
    n += 1
    write_atomic(Path(sys.argv[1]), str(n).encode() * 200_000)
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        while not target.exists():
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = target.read_bytes()
        first = content[: len(content) // 200_000]
        assert content == first * 200_000
        target.unlink()


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "directory", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_content_hash_ignores_key_order_only() -> None:
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": [1, 2], "a": 1})
    assert content_hash({"b": [1, 2]}) != content_hash({"b": [2, 1]})


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from nnunet_jobs.contract.storage.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with open(lock, "r+b") as file:
        assert not try_lock(file.fileno())
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(lock) as fd:
        assert not os.get_inheritable(fd)


def test_json_is_readable_by_any_language(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"dice": 0.5})
    assert json.loads((tmp_path / "a.json").read_text()) == read_json(tmp_path / "a.json") == {"dice": 0.5}
