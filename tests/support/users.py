"""Really other users: a child of the test that gives its rights up before it acts."""

from __future__ import annotations

import atexit
import functools
import json
import os
import pwd
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.storage.permissions import explain_permission_error, permission_error


@dataclass(frozen=True, kw_only=True)
class User:
    """Numbers that no account has; the system shows them as numbers."""

    uid: int
    groups: tuple[int, ...]


GROUP = 70010
ALICE = User(uid=70001, groups=(70001, GROUP))
BOB = User(uid=70002, groups=(70002, GROUP))
MALLORY = User(uid=70003, groups=(70003,))


_PYTHON = "NNUNET_TEST_PYTHON"


@functools.cache
def reachable_python() -> str:
    """This interpreter where every user can start it: jobs start reading processes, and a home folder keeps others out."""
    if _PYTHON in os.environ:  # made by the test that started this process, which removes it too
        return os.environ[_PYTHON]
    real = Path(os.path.realpath(sys.executable))
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents):
        return sys.executable
    base = Path(sys.base_prefix)
    copy = Path(tempfile.mkdtemp(prefix="nnunet-python-"))
    atexit.register(functools.partial(_remove_own, copy, os.getpid()))
    copy.chmod(0o755)
    for part in ("bin", "lib"):
        skipped = shutil.ignore_patterns("site-packages", "test", "idlelib", "*.a", "__pycache__")
        shutil.copytree(base / part, copy / part, symlinks=True, copy_function=_link, ignore=skipped)
    os.environ[_PYTHON] = str(copy / "bin" / real.name)
    return os.environ[_PYTHON]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _remove_own(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child that ends
        shutil.rmtree(folder)


def become(user: User) -> None:
    """Take the user's rights and an interpreter that the user can start, with this one's packages."""
    python = reachable_python()
    if python != sys.executable:
        packages = [entry for entry in sys.path if entry.endswith("site-packages")]
        os.environ["PYTHONPATH"] = os.pathsep.join([*packages, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ["LD_LIBRARY_PATH"] = str(Path(python).parents[1] / "lib")
        sys.executable = python
    os.setgroups(user.groups)
    os.setresgid(user.groups[0], user.groups[0], user.groups[0])
    os.setresuid(user.uid, user.uid, user.uid)


@contextmanager
def open_folder(*, group: int | None = None, mode: int = 0o755) -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not; with ``group``, one that a group shares."""
    if os.geteuid():
        pytest.skip("only root can become other users")
    folder = Path(tempfile.mkdtemp(prefix="nnunet-users-"))
    try:
        folder.chmod(0o755)
        (folder / "shared").mkdir()
        os.chown(folder / "shared", 0, -1 if group is None else group)
        (folder / "shared").chmod(mode)
        yield folder
    finally:
        shutil.rmtree(folder)


def as_user(user: User, act: Callable[[], Any], *, umask: int = 0o022) -> dict[str, Any]:
    """Run something as another user in a child.

    Returns:
        ``{"result": ...}``, or ``{"error": class of the exception, "failure_class", "message"}`` with the message of a refusal in words.
    """
    reachable_python()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            become(user)
            os.umask(umask)
            outcome = _outcome(act)
            with open(writer, "w") as file:
                json.dump(outcome, file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child of user {user.uid} ended with {status}"
    return dict(json.loads(text))


def _outcome(act: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": act()}
    except Exception as error:
        denied = permission_error(error)
        message = explain_permission_error(denied) if denied and not isinstance(error, JobError) else str(error)
        return {"error": type(error).__name__, "failure_class": str(classify(error)), "message": message}


def root_name() -> str:
    """What the system calls root."""
    return pwd.getpwuid(0).pw_name
