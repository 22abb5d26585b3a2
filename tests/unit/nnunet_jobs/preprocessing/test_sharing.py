"""Two users of a group preprocess one dataset in turn: the second links what the first computed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from devtools.testbed.data import describe_decathlon
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import write_phantom
from support.users import ALICE, BOB, GROUP, User, open_folder, reachable_python

# The first run, as root and somewhere else, imports all that is ever imported: another user may not read this interpreter.
PROGRAM = """
import encodings.cp437
import json, os, sys
from pathlib import Path
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.preprocessing import fingerprint
from devtools.testbed.data import register_dataset
from support.users import User, become
from support.withdraw import prepare

asked = json.loads(sys.argv[1])
fingerprint.INTENSITIES_PER_DATASET = 1e6
def work(workspace):
    apply_permissions(workspace)
    register_dataset(workspace, Path(asked["source"]), holdout_fraction=0.0)
    return prepare(workspace)
work(Workspace.below(asked["warm"], input_roots=(asked["source"],)))
become(User(uid=asked["uid"], groups=tuple(asked["groups"])))
os.umask(0o022)
print(json.dumps(work(Workspace.from_json(asked["workspace"]))))
"""


def prepare_as(user: User, workspace: Workspace, source: Path, warm: Path) -> dict[str, Any]:
    asked = {"uid": user.uid, "groups": user.groups, "workspace": workspace.to_json(), "source": str(source), "warm": str(warm)}
    reachable_python()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_second_user_links_what_the_first_computed(tmp_path: Path) -> None:
    with open_folder(group=GROUP, mode=0o2770) as folder:
        source = folder / "source"
        write_phantom(source, cases=5, seed=3)
        source.chmod(0o755)
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").iterdir())
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing="group")
        describe_decathlon(source, cases[:4])
        first = prepare_as(ALICE, workspace, source, tmp_path / "a")
        describe_decathlon(source, cases)
        second = prepare_as(BOB, workspace, source, tmp_path / "b")
        assert (first["computed"], second["computed"], second["linked"]) == (4, 1, 4)
        root = Path(workspace.preprocessed)
        assert {path.stat().st_uid for path in root.rglob("*.b2nd")} == {ALICE.uid, BOB.uid}
        for path in (root, *root.rglob("*")):
            status = path.lstat()
            assert status.st_gid == GROUP, path
            if not path.is_symlink():
                assert stat.S_IMODE(status.st_mode) == (0o2770 if path.is_dir() else 0o660), f"{path} {stat.filemode(status.st_mode)}"
        shared = [path for path in Path(second["path"]).rglob("*.b2nd") if path.stat().st_nlink == 2]
        assert len(shared) == 8  # hard links, not copies, although they are another user's
