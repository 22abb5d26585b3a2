"""Withdrawals that are killed at every moment, and that meet registrations; whatever happens, the case is gone in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.testbed.data import decathlon, register_dataset
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from nnunet_jobs.preprocessing import fingerprint
from support.withdraw import DATASET, content, fill, take_out

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_killed_between_any_two_file_operations_it_completes_when_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 1e6)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    source = tmp_path / "source"
    write_phantom(source, cases=4, seed=3)
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(tmp_path),))
    fill(workspace, source)
    case, root, pristine = sorted(workspace.manifest(DATASET)["cases"])[0], tmp_path / "work", tmp_path / "pristine"
    shutil.copytree(root, pristine, symlinks=True)
    take_out(workspace, case, predictions=True, demote=True)
    done = content(workspace)
    assert [name for name in done if case in name] == []
    moment, survived, half = 0, False, 0
    while not survived:
        shutil.rmtree(root)
        shutil.copytree(pristine, root, symlinks=True)
        child = os.fork()
        if child == 0:
            _die_at_operation(moment)
            with contextlib.suppress(BaseException):
                take_out(workspace, case, predictions=True, demote=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = not os.WIFSIGNALED(status)
        half += bool(Tombstones(workspace, DATASET).incomplete())
        if moment % 3 == 0:  # a registration in between brings nothing back
            register_dataset(workspace, source, holdout_fraction=0.0)
            registered = case in workspace.manifest(DATASET)["cases"]
            assert registered == (case not in Tombstones(workspace, DATASET).cases)
        take_out(workspace, case, predictions=True, demote=True)
        assert content(workspace) == done, f"after operation {moment}"
        moment += 1
    assert moment > 30
    assert half > 20


def _die_at_operation(moment: int) -> None:
    """Kill this process when it asks the kernel for its ``moment``-th change of a file system entry."""
    count = 0

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym"):
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(audit)


REGISTER = """
import json, sys
from nnunet_jobs.contract.storage.workspace import Workspace
from devtools.testbed.data import register_dataset
asked = json.loads(sys.argv[1])
print(json.dumps(register_dataset(Workspace.from_json(asked["workspace"]), asked["source"], holdout_fraction=0.0)))
"""


def test_registrations_at_the_same_time_never_bring_it_back(tmp_path: Path, workspace: Workspace) -> None:
    source = decathlon(tmp_path / "s", [f"c{n:02d}" for n in range(12)])
    register_dataset(workspace, source, holdout_fraction=0.0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    asked = json.dumps({"workspace": workspace.to_json(), "source": str(source)})
    words = [sys.executable, "-m", "nnunet_jobs", "withdraw", "--workspace-json", str(tmp_path / "w.json"), "4", "--case", "c05"]
    (tmp_path / "w.json").write_text(json.dumps(workspace.to_json()))
    commands = [[sys.executable, "-c", REGISTER, asked]] * 3 + [words] * 2 + [[sys.executable, "-c", REGISTER, asked]] * 3
    running = [
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    manifest = workspace.manifest(DATASET)
    assert sorted(manifest["cases"]) == [f"c{n:02d}" for n in range(12) if n != 5]
    assert not list(Path(workspace.raw).rglob("c05*"))
    assert [line["withdrawn"] for line in manifest["history"]] == [0, 1]
    assert Tombstones(workspace, DATASET).incomplete() == []
