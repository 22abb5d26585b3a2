"""Promotions, rollbacks and retirements that are killed at every file operation, and that meet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.ledger import entries, ledger_path
from nnunet_jobs.registry.promotion import demote, promote, promote_if, retire, rollback, settle
from nnunet_jobs.registry.verification import verify
from support.promotion import DATASET, select

CHANGES = ("replace", "rename", "symlink", "unlink", "remove", "mkdir", "fsync", "ftruncate", "write", "pwrite", "open")


class Always:
    """A policy's answer."""

    promote, why, facts = True, "It is better.", {"gain": 0.1}


def by_policy(workspace: Workspace) -> object:
    """A run's promotion; its retry has the same record."""
    return promote_if(workspace, DATASET, "c", lambda _: Always(), by="night", record=Path(workspace.jobs) / "promotion.json")


@pytest.mark.parametrize(
    ("act", "before", "after", "events"),
    [
        (lambda home: promote(home, DATASET, "c"), "b", "c", ["promoted"]),
        (lambda home: rollback(home, DATASET), "b", "a", ["rolled_back"]),
        (lambda home: retire(home, DATASET, "a"), "b", "b", ["retired"]),
        (lambda home: demote(home, DATASET, "b"), "b", None, ["demoted"]),
        (by_policy, "b", "c", ["registered", "judged", "promoted"]),
    ],
    ids=["promote", "rollback", "retire", "demote", "policy"],
)
def test_killed_at_any_file_operation_there_is_one_champion_and_a_whole_ledger(
    tmp_path: Path, act: Callable[[Workspace], Any], before: str, after: str | None, events: list[str]
) -> None:
    root, pristine = tmp_path / "work", tmp_path / "pristine"
    workspace = Workspace.below(root)
    Path(workspace.jobs).mkdir(parents=True)
    select(workspace, "a", "b", "c")
    promote(workspace, DATASET, "a")
    promote(workspace, DATASET, "b")
    shutil.copytree(root, pristine, symlinks=True)
    survived, moment, seen = False, 0, set()
    while not survived:
        shutil.rmtree(root)
        shutil.copytree(pristine, root, symlinks=True)
        child = os.fork()
        if child == 0:
            die_at_operation(moment)
            with contextlib.suppress(BaseException):
                act(workspace)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = not os.WIFSIGNALED(status)
        assert workspace.champion(DATASET) in (before, after), "a reader sees the one or the other before anything is settled"
        settle(workspace, DATASET)
        told = whole(workspace)
        settled = workspace.champion(DATASET)
        assert settled == (after if told[-1:] == events[-1:] else before), f"operation {moment}"
        seen.add((settled, len(told)))
        with contextlib.suppress(FileNotFoundError):
            assert not list(ledger_path(workspace, DATASET).parent.glob("*.intent.json"))
        if told[-1:] == events[-1:] and act is not by_policy:
            moment += 1
            continue  # the rollback is done, and another one would go further back
        answer = act(workspace)
        assert whole(workspace) == events, f"once, after operation {moment} and a second attempt"
        assert workspace.champion(DATASET) == after
        if act is by_policy:
            assert answer.promoted, "the retry says that its run promoted the model"
        moment += 1
    assert moment > 8
    assert len(seen) > 1


def test_a_rollback_that_was_killed_and_is_typed_again_goes_back_once(tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path)
    select(workspace, "a", "b", "c")
    for model in ("a", "b", "c"):
        promote(workspace, DATASET, model)
    child = os.fork()
    if child == 0:
        os.symlink = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        rollback(workspace, DATASET)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert workspace.champion(DATASET) == "c"
    assert rollback(workspace, DATASET).model == "b"
    assert workspace.champion(DATASET) == "b"
    assert whole(workspace, since=3) == ["rolled_back"]


@pytest.mark.parametrize("act", [lambda home: rollback(home, DATASET), lambda home: demote(home, DATASET, "b")], ids=["rollback", "demote"])
def test_what_was_interrupted_is_finished_although_finishing_it_is_killed_too(tmp_path: Path, act: Callable[[Workspace], Any]) -> None:
    root, half = tmp_path / "work", tmp_path / "half"
    workspace = Workspace.below(root)
    select(workspace, "a", "b")
    for model in ("a", "b"):
        promote(workspace, DATASET, model)
    child = os.fork()
    if child == 0:
        os.symlink = os.unlink = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        act(workspace)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    shutil.copytree(root, half, symlinks=True)
    moment, survived = 0, False
    while not survived:
        shutil.rmtree(root)
        shutil.copytree(half, root, symlinks=True)
        child = os.fork()
        if child == 0:
            die_at_operation(moment)
            settle(workspace, DATASET)
            os._exit(0)
        survived = not os.WIFSIGNALED(os.waitpid(child, 0)[1])
        settle(workspace, DATASET)
        assert whole(workspace) in (["rolled_back"], ["demoted"])
        assert workspace.champion(DATASET) == ("a" if whole(workspace) == ["rolled_back"] else None)
        moment += 1
    assert moment > 2


def whole(workspace: Workspace, since: int = 2) -> list[str]:
    """Events after the first ones; the ledger is whole."""
    (verdict,) = verify(ledger_path(workspace, DATASET))
    assert verdict.faults == ()
    return [entry.event.value for entry in entries(workspace, DATASET)[since:]]


def die_at_operation(moment: int) -> None:
    """Kill this process before its ``moment``-th change of the file system, or half-way in a write."""
    count = 0

    def next_one() -> bool:
        nonlocal count
        count += 1
        return count > moment

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                return original(*arguments, **more)
            if next_one():
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "pwrite" and next_one():
                fd, data, offset = arguments
                original(fd, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **more)

        return call

    for name in CHANGES:
        setattr(os, name, wrapped(name, getattr(os, name)))


PROMOTE = """
import json, sys
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.registry.promotion import promote
workspace = Workspace.from_json(json.loads(sys.argv[1]))
for turn in range(10):
    for model in sys.argv[2:]:
        promote(workspace, "Dataset005_Phantom", model, by=f"process {sys.argv[2]}")
"""


def test_two_processes_that_promote_at_once_leave_one_champion_and_one_chain(workspace: Workspace) -> None:
    select(workspace, "a", "b", "c", "d")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = json.dumps(workspace.to_json())
    running = [
        subprocess.Popen([sys.executable, "-c", PROMOTE, asked, *models], env=environment, stderr=subprocess.PIPE, text=True)
        for models in (("a", "b"), ("c", "d"))
    ]
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert whole(workspace, since=0) == ["promoted"] * 40
    found = entries(workspace, DATASET)
    assert [entry.before for entry in found[1:]] == [entry.model for entry in found[:-1]]
    assert workspace.champion(DATASET) == found[-1].model
