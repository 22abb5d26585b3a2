"""The pool of reading processes: who ends them, what a task tells meanwhile, and what is nobody's file's fault."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnunet_jobs.sandbox.workers import Broken, Died, NotStarted, TookTooLong, Workers
from support.jobs import is_alive, wait_for

PROGRAM = """
import ctypes, os, sys, time
from pathlib import Path
from nnunet_jobs.sandbox import worker

def pid(data):
    return {"pid": os.getpid()}

def stuck(data):
    Path(data["pid"]).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)  # lets no other thread run
    return {}

def talk(data):
    worker.note({"file": "a"})
    worker.alive()
    time.sleep(0.3)
    worker.note({"file": "b"})
    return {"done": True}

def greedy(data):
    memory = worker.MemoryLimit(data["budget"])
    memory.begin()
    memory.reserve(data["size"])
    return {}

sys.exit(worker.main(sys.argv[1:], globals().__getitem__))
"""
PARENT = """
import sys
from nnunet_jobs.sandbox.workers import Workers
with Workers(1, program="reader_of_a_test") as workers:
    workers.call("stuck", {"pid": sys.argv[1]}, timeout_s=500, memory_mib=500, beat=lambda: None)
"""
LIMITS = {"timeout_s": 30.0, "memory_mib": 500, "beat": lambda: None}


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "reader_of_a_test.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "reader_of_a_test"


def test_a_reader_that_is_stuck_dies_with_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)], env=environment)
    reader = int(wait_for(lambda: file.exists() and file.read_text()))
    assert is_alive(reader)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(reader))


def test_a_reader_outlives_the_thread_that_needed_it_first(program: str) -> None:
    with Workers(1, program=program) as workers:
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(workers.call("pid", {}, **LIMITS)["pid"]))
        thread.start()
        thread.join()
        assert workers.call("pid", {}, **LIMITS) == {"pid": seen[0]}


def test_a_task_tells_how_far_it_is(program: str) -> None:
    heard: list[dict | None] = []
    with Workers(1, program=program) as workers:
        assert workers.call("talk", {}, **LIMITS, heard=heard.append) == {"done": True}
    assert [note for note in heard if note] == [{"file": "a"}, {"file": "b"}]
    assert None in heard


def test_a_stuck_reader_is_ended_and_the_next_task_gets_a_new_one(program: str, tmp_path: Path) -> None:
    with Workers(1, program=program) as workers:
        with pytest.raises(TookTooLong, match="longer than 1 s"):
            workers.call("stuck", {"pid": str(tmp_path / "pid")}, timeout_s=1, memory_mib=500, beat=lambda: None)
        assert workers.call("pid", {}, **LIMITS)["pid"] != int((tmp_path / "pid").read_text())


def test_memory_is_refused_above_the_budget(program: str) -> None:
    with Workers(1, program=program) as workers:
        assert workers.call("greedy", {"budget": 100, "size": 100}, **LIMITS) == {}
        with pytest.raises(Broken, match="memory"):
            workers.call("greedy", {"budget": 100, "size": 101}, **LIMITS)


def test_a_program_that_cannot_start_is_tried_three_times(program: str, tmp_path: Path) -> None:
    (tmp_path / f"{program}.py").write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); import os; os._exit(7)")
    with Workers(1, program=program) as workers, pytest.raises(NotStarted, match="ended with code 7") as caught:
        workers.call("pid", {}, **LIMITS)
    assert caught.value.how == "with exit code 7 3 times"
    assert (tmp_path / "starts").read_text() == "xxx"
    assert issubclass(NotStarted, Died)
