"""Roots of several users: real users of one group work one after the other, one without rights is told why not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devtools.testbed.data import decathlon, describe_decathlon, image_array, register_dataset, tree, write_nifti
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, DataError, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.permissions import (
    apply_permissions,
    blocking_path,
    explain_permission_error,
    permission_error,
    permission_problem,
    workspace_umask,
)
from nnunet_jobs.contract.storage.withdrawals import Tombstones, WithdrawParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.runner import child
from nnunet_jobs.steps import register, withdraw
from support.users import ALICE, BOB, GROUP, MALLORY, as_user, open_folder, root_name

CASES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def _warm(tmp_path: Path, workspace: Workspace) -> None:
    """Everything is imported once before rights are given up: another user may not read this interpreter."""
    register_dataset(workspace, decathlon(tmp_path / "warm", ["a", "b"]), holdout_fraction=0.0)
    withdraw.run(WithdrawParams(dataset="4", cases=["a"]), StepContext(workspace=workspace, job=JobDir(workspace.jobs)))


def act_register(workspace: Workspace, source: Path, **params: Any) -> dict[str, Any]:
    """What runner and step do together."""
    apply_permissions(workspace)
    job = JobDir(Path(workspace.jobs) / f"register-{os.geteuid()}")
    job.path.mkdir(parents=True, exist_ok=True)
    fields = RegisterParams(dataset_id=4, name="Small", source=str(source), holdout_fraction=0.0, **params)
    return register.run(fields, StepContext(workspace=workspace, job=job, cpus=2))


def act_withdraw(workspace: Workspace, case: str) -> list[str]:
    apply_permissions(workspace)
    job = JobDir(Path(workspace.jobs) / f"withdraw-{os.geteuid()}")
    job.path.mkdir(parents=True, exist_ok=True)
    return list(withdraw.run(WithdrawParams(dataset="4", cases=[case]), StepContext(workspace=workspace, job=job))["cases"])


def grow(source: Path, case: str, seed: int) -> None:
    decathlon(source, [case], first_seed=seed)
    describe_decathlon(source, [*CASES, case])


@pytest.mark.parametrize(("sharing", "others"), [("group", 0), ("group_others_read", 0o005)])
def test_two_users_of_a_group_register_append_and_withdraw_in_turn(sharing: str, others: int) -> None:
    with open_folder(group=GROUP, mode=0o2770 | others) as folder:
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing=sharing)
        first = as_user(ALICE, lambda: act_register(workspace, source))["result"]
        assert (first["added"], first["train"]) == (3, 3)
        grow(source, "d", 20)
        second = as_user(BOB, lambda: act_register(workspace, source))["result"]
        assert (second["added"], second["train"]) == (1, 4)
        write_nifti(source / "imagesTr" / "a.nii.gz", image_array(50))
        third = as_user(ALICE, lambda: act_register(workspace, source))["result"]
        assert (third["changed"], third["train"]) == (1, 4)
        assert as_user(BOB, lambda: act_withdraw(workspace, "b"))["result"] == ["b"]
        assert as_user(ALICE, lambda: act_register(workspace, source))["result"]["withdrawn"] == 1
        users = [line["by"]["user"] for line in read_json(Path(first["path"]) / "manifest.json")["history"]]
        assert users == [str(user.uid) for user in (ALICE, BOB, ALICE, BOB)]
        for path in (folder / "shared" / "work").rglob("*"):
            status = path.lstat()
            assert status.st_gid == GROUP, path
            wanted = (0o2770 | others) if path.is_dir() else (0o660 | (others & 0o004))
            assert stat.S_IMODE(status.st_mode) == wanted, f"{path} {stat.filemode(status.st_mode)}"


def test_a_withdrawal_says_what_only_another_user_can_remove() -> None:
    with open_folder(group=GROUP, mode=0o2770) as folder:
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing="group")
        as_user(ALICE, lambda: act_register(workspace, source))
        private, cache = (Path(workspace.raw) / name for name in (".private", ".state/dicom"))

        def identify() -> None:
            for path in (private, cache):
                path.mkdir(mode=0o700)
            (private / "Dataset004_Small.jsonl").write_text('{"case": "b", "patient": "DOE"}\n')

        as_user(ALICE, identify)
        job = JobDir(Path(workspace.jobs) / "withdraw")

        def act() -> list[str]:
            apply_permissions(workspace)
            job.path.mkdir(exist_ok=True)
            return list(withdraw.run(WithdrawParams(dataset="4", cases=["b"]), StepContext(workspace=workspace, job=job))["left"])

        left = as_user(BOB, act)["result"]
        assert [f"{path} belongs to {ALICE.uid}:" in line for path, line in zip((cache, private), left, strict=True)] == [True, True]
        assert Tombstones(workspace, "Dataset004_Small").incomplete() == ["b"]
        assert as_user(ALICE, act)["result"] == []
        assert Tombstones(workspace, "Dataset004_Small").incomplete() == []
        assert (private / "Dataset004_Small.jsonl").read_text() == ""


def test_what_a_killed_run_of_one_user_left_does_not_stop_the_other() -> None:
    with open_folder(group=GROUP, mode=0o2770) as folder:
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing="group")
        as_user(ALICE, lambda: act_register(workspace, source))
        registered = Path(workspace.raw) / "Dataset004_Small"

        def leave() -> None:
            apply_permissions(workspace)
            (registered / "notes").mkdir()
            (registered / "notes" / "by_hand.txt").write_text("kept")
            shutil.copytree(registered, registered.with_name(f".{registered.name}.staging"))

        as_user(ALICE, leave)
        grow(source, "d", 20)
        assert as_user(BOB, lambda: act_register(workspace, source))["result"]["added"] == 1
        assert (registered / "notes" / "by_hand.txt").read_text() == "kept"
        assert not registered.with_name(f".{registered.name}.staging").exists()


def test_without_sharing_new_files_are_their_owners_alone_and_no_root_is_made(tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path / "none")
    before = os.umask(0o027)
    try:
        with workspace_umask(workspace):
            assert os.umask(0o077) == 0o077
        assert os.umask(0o027) == 0o027
        apply_permissions(workspace)
        assert os.umask(0o027) == 0o077
        assert not (tmp_path / "none").exists()
        with workspace_umask(Workspace.below(tmp_path / "none", sharing="group")):
            assert os.umask(0o007) == 0o007
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_container_that_does_not_see_all_roots_shares_those_it_sees(tmp_path: Path) -> None:
    """Its own file system is read-only; missing roots are not for its step."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    before = os.umask(0o022)
    try:
        (disk / "nnUNet_raw").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        apply_permissions(Workspace.below(disk, sharing="group"))
        assert os.umask(before) == 0o007
        assert [path.name for path in disk.iterdir()] == ["nnUNet_raw"]
    finally:
        os.umask(before)
        subprocess.run(["umount", str(disk)], check=True)


def test_fault_a_user_without_rights_is_told_whose_it_is_and_nothing_is_half_written() -> None:
    with open_folder(group=GROUP, mode=0o2775) as folder:
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing="group_others_read")
        path = Path(as_user(ALICE, lambda: act_register(workspace, source))["result"]["path"])
        before, names = tree(path), sorted(path.parent.rglob("*"))
        grow(source, "d", 20)
        own = folder / "own"
        own.mkdir()
        own.chmod(0o777)
        theirs = Workspace(**{**workspace.to_json(), "jobs": str(own)})
        failure = as_user(MALLORY, lambda: run_job(theirs, source))["result"]["failure"]
        assert failure["failure_class"] == "config"
        lock = path.parent / ".locks" / "004.lock"
        assert failure["message"].startswith(f"{lock}: permission denied for user {MALLORY.uid} (groups {MALLORY.uid}); ")
        assert f"{lock} belongs to {ALICE.uid}:{GROUP} with mode -rw-rw-r--" in failure["message"]
        assert f"Fix: add {MALLORY.uid} to the group {GROUP}" in failure["message"]
        assert tree(path) == before
        assert sorted(path.parent.rglob("*")) == names


def run_job(workspace: Workspace, source: Path) -> dict[str, Any]:
    """A job's step in this process, as the runner starts it; returns its outcome."""
    params = RegisterParams(dataset_id=4, name="Small", source=str(source)).to_json()
    job = JobDir(Path(workspace.jobs) / "register-00000001")
    job.path.mkdir()
    write_json(job.path / "spec.json", JobSpec(job_id=job.job_id, step="register", params=params, workspace=workspace).to_json())
    grant = {"device": "cpu", "gpus": [], "cpus": 1, "memory_mib": None, "grace_s": 5.0, "runner": os.getppid()}
    os.environ[child.GRANT_VARIABLE] = json.dumps(grant)
    child.main(job, 1)
    return dict(read_json(child.outcome_path(job, 1)))


def test_a_private_dataset_is_explained_to_a_member_of_another_team() -> None:
    with open_folder(mode=0o1777) as folder:
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),))
        as_user(ALICE, lambda: act_register(workspace, source), umask=0o077)
        refused = as_user(BOB, lambda: act_register(workspace, source))
        assert (refused["error"], refused["failure_class"]) == ("PermissionError", "config")
        blocked = folder / "shared" / "work"
        assert f"{blocked} belongs to {ALICE.uid}:{ALICE.uid} with mode drwx------" in refused["message"]


def test_names_of_a_source_are_not_told() -> None:
    with open_folder() as folder:
        secret = folder / "incoming" / "DOE^JOHN" / "scan.dcm"
        secret.parent.mkdir(parents=True)
        secret.write_text("")
        secret.parent.chmod(0o700)

        def read() -> str:
            try:
                secret.read_text()
            except PermissionError as error:
                return child.failure_from(error, attempt=1, hidden=(str(folder / "incoming"),)).message
            return "read"

        message = as_user(MALLORY, read)["result"]
        assert "DOE" not in message
        assert message.startswith(f"{folder}/incoming: permission denied for user {MALLORY.uid}")
        assert f"something below it belongs to {root_name()}:" in message
        assert f"find {folder}/incoming ! -readable" in message


def test_a_file_in_a_folder_that_can_be_read_is_the_one_that_is_named() -> None:
    with open_folder(group=GROUP, mode=0o2775) as folder:
        path = folder / "shared" / "file"
        path.write_text("")
        path.chmod(0o660)
        assert as_user(BOB, lambda: path.read_text()) == {"result": ""}
        assert as_user(MALLORY, lambda: str(blocking_path(path)))["result"] == str(path)
        path.chmod(0o600)
        refused = as_user(BOB, lambda: path.read_text())
        assert (
            f"{path} belongs to {root_name()}:{GROUP} with mode -rw-------. Fix: its owner runs chmod -R g+rwX {path}" in refused["message"]
        )
        blocked = as_user(MALLORY, lambda: str(blocking_path(folder / "shared" / "new" / "file")))["result"]
        assert blocked == str(folder / "shared")


def test_a_refusal_is_never_retried_and_found_behind_other_errors() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/data/x")
    assert classify(denied) is classify(PermissionError(errno.EPERM, "no", "/x")) is FailureClass.CONFIG
    outer = RuntimeError("a library's words")
    outer.__cause__ = denied
    assert classify(outer) is FailureClass.CONFIG
    assert "/data/x" in child.failure_from(outer, attempt=1).message
    judged = DataError("already judged")
    judged.__cause__ = denied
    assert permission_error(judged) is None
    assert explain_permission_error(OSError(errno.EPERM, "Operation not permitted")).startswith(
        "permission denied (Operation not permitted) for user "
    )


def test_an_unknown_way_of_sharing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sharing='everybody': must be private, group, group_others_read"):
        Workspace.below(tmp_path, sharing="everybody")
    shared = Workspace.below(tmp_path, sharing="group")
    assert Workspace.from_json(shared.to_json()) == shared
    old = {name: value for name, value in shared.to_json().items() if name != "sharing"}
    assert Workspace.from_json(old).sharing == "private"


def test_an_old_root_that_is_not_shared_is_named_with_the_mend(tmp_path: Path) -> None:
    workspace = Workspace.below(tmp_path, sharing="group")
    (tmp_path / "nnUNet_raw").mkdir(mode=0o755)
    assert "its owner runs: chmod 2770" in str(permission_problem(workspace, tmp_path / "nnUNet_raw"))
    assert permission_problem(Workspace.below(tmp_path), tmp_path / "nnUNet_raw") is None
    share_into = tmp_path / "new"
    before = os.umask(0o022)
    try:
        apply_permissions(Workspace.below(share_into, sharing="group"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (share_into, *share_into.iterdir())} == {0o2770}
    assert permission_problem(Workspace.below(share_into, sharing="group"), share_into / "nnUNet_raw") is None


def default_acl(folder: Path, uid: int) -> None:
    """A default ACL that lets one more user read and write; a skip where the file system has none."""
    entries = [(0x01, 7, 0xFFFFFFFF), (0x02, 7, uid), (0x04, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            os.setxattr(folder, name, data)
    except OSError as error:
        pytest.skip(f"no POSIX ACLs here: {error.strerror}")


@pytest.mark.parametrize("sharing", ["private", "group"])
def test_default_acls_reach_every_file_and_are_never_stripped(sharing: str) -> None:
    with open_folder() as folder:
        default_acl(folder / "shared", MALLORY.uid)
        source = decathlon(folder / "source", CASES)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),), sharing=sharing)
        before = os.umask(0o022)
        try:
            grow(source, "d", 20)
            describe_decathlon(source, CASES)
            os.umask(0o077)
            act_register(workspace, source)
            describe_decathlon(source, [*CASES, "d"])
            (source / "dataset.json").chmod(0o644)
            act_register(workspace, source)
        finally:
            os.umask(before)

        def closed() -> list[str]:
            found = [folder / "shared" / "work", *(folder / "shared" / "work").rglob("*")]
            return [str(path) for path in found if not os.access(path, os.R_OK | os.W_OK)]

        assert as_user(MALLORY, closed)["result"] == []
        assert as_user(MALLORY, lambda: act_register(workspace, source))["result"]["already_done"]
        assert as_user(MALLORY, lambda: act_withdraw(workspace, "b"))["result"] == ["b"]
        assert as_user(BOB, lambda: act_register(workspace, source))["failure_class"] == "config"
