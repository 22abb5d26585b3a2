"""``sharing = private``, the default: whatever the umask, what is made is for its owner alone; a source's own files keep their mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet.doctor.privacy import examine_privacy
from devtools.testbed.data import decathlon, register_dataset
from nnunet_jobs.__main__ import build_parser
from nnunet_jobs.cli.validate import VALIDATE
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.job.usage import Usage, append_usage
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.contract.storage.files import locked, read_only, write_json
from nnunet_jobs.contract.storage.marker import MARKER
from nnunet_jobs.contract.storage.permissions import make_folder, workspace_umask
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.transfer import link_or_copy
from support.private import data_roots, open_to_others
from support.users import MALLORY, as_user, open_folder


@pytest.fixture(autouse=True)
def _default_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def submitted(workspace: Workspace, source: Path) -> JobDir:
    params = RegisterParams(dataset_id=4, name="Small", source=str(source)).to_json()
    with workspace_umask(workspace):
        return JobDir.create(JobSpec(job_id="register-00000001", step="register", params=params, workspace=workspace))


def test_what_a_triggerer_or_an_api_server_writes_into_a_job_is_as_private_as_the_job(workspace: Workspace, tmp_path: Path) -> None:
    job = submitted(workspace, tmp_path)
    assert job.begin_attempt(expected=0) == 1
    job.request_cancel("the task was marked failed by a user")
    job.declare_lost(1, Failure(failure_class=FailureClass.LOST, message="case DOE", attempt=1))
    now = "2026-01-01T00:00:00+00:00"
    who = {"dataset": "Dataset004_Small", "team": "", "user": "anna", "host": "h"}
    append_usage(job, Usage(job=job.job_id, attempt=1, step="register", started=now, ended=now, outcome="lost", **who))
    assert open_to_others(Path(workspace.jobs)) == []
    assert {path.name for path in Path(workspace.jobs).iterdir()} == {job.job_id, ".usage", MARKER}


def test_the_same_in_a_groups_folder_leaves_the_group_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2770)
    write_json(folder / "record.json", {})
    with locked(folder / "below" / "lock"):
        pass
    assert [mode(path) for path in (folder / "record.json", folder / "below", folder / "below" / "lock")] == [
        "-rw-r-----", "drwxr-s---", "-rw-r-----",
    ]  # fmt: skip


def test_a_registered_copy_is_private_and_the_source_keeps_its_mode(workspace: Workspace, tmp_path: Path) -> None:
    source = decathlon(tmp_path / "source", ["a", "b"])
    linked = source / "imagesTr" / "a.nii.gz"
    linked.chmod(0o444)  # write-protected: hard-linked where no reflink can be had
    before = {path: mode(path) for path in source.rglob("*")}
    register_dataset(workspace, source, holdout_fraction=0.0)
    assert {path: mode(path) for path in source.rglob("*")} == before
    registered = Path(workspace.raw) / "Dataset004_Small" / "imagesTr" / "a_0000.nii.gz"
    same_file = registered.stat().st_ino == linked.stat().st_ino
    own = [line for line in open_to_others(Path(workspace.raw)) if not (same_file and line.startswith(str(registered)))]
    assert own == []
    assert os.umask(0o022) == 0o022, "the step gives the caller's umask back"


def test_other_accounts_can_reach_nothing_not_even_hard_links() -> None:
    with open_folder(mode=0o755) as folder:
        source = decathlon(folder / "source", ["a", "b"])
        for path in (source / "imagesTr").iterdir():
            path.chmod(0o444)
        workspace = Workspace.below(folder / "shared" / "work", input_roots=(str(source),))
        register_dataset(workspace, source, holdout_fraction=0.0)
        path = Path(workspace.raw) / "Dataset004_Small" / "imagesTr" / "a_0000.nii.gz"
        assert path.is_file()
        assert as_user(MALLORY, lambda: path.read_bytes().hex())["error"] == "PermissionError"
        assert as_user(MALLORY, lambda: os.listdir(workspace.raw))["error"] == "PermissionError"


def test_copies_and_write_protection_do_not_open_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"voxels")
    disk = Path("/dev/shm")  # another file system, so that no hard link is possible
    if not disk.is_dir() or disk.stat().st_dev == source.stat().st_dev:
        pytest.skip("needs a second file system")
    target = disk / f"nnunet-private-{os.getpid()}"
    try:
        os.umask(0o077)
        link_or_copy(source, target)
        assert mode(target) == "-rw-------"
        read_only(target)
        assert mode(target) == "-r--------"
    finally:
        target.unlink(missing_ok=True)


@pytest.mark.parametrize(("sharing", "wanted"), [("private", "drwx------"), ("group", "drwxrws---")])
def test_folders_of_a_server_with_threads_get_their_modes_one_by_one(tmp_path: Path, sharing: str, wanted: str) -> None:
    make_folder(Workspace.below(tmp_path / "work", sharing=sharing), tmp_path / "work" / "jobs" / "requests" / "images")
    assert {mode(path) for path in (tmp_path / "work").rglob("*")} | {mode(tmp_path / "work")} == {wanted}


def test_a_page_of_pictures_written_by_hand_is_its_owners(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "source", ["a", "b"])
    page = tmp_path / "report.html"
    assert VALIDATE.run(build_parser().parse_args(["validate", str(source), "--html", str(page)])) == Exit.DONE
    assert mode(page) == "-rw-------"


def test_the_doctor_names_what_everybody_may_read_and_how_to_close_it() -> None:
    with open_folder(mode=0o755) as folder:
        workspace = Workspace.below(folder / "shared" / "work")
        raw = Path(workspace.raw) / "Dataset004_Small" / "imagesTr"
        raw.mkdir(parents=True)
        (raw / "a_0000.nii.gz").write_bytes(b"")

        def found(sharing: str = "private") -> list[tuple[str, bool, str]]:
            looked_at = Workspace.below(folder / "shared" / "work", sharing=sharing)
            return [(finding.topic, finding.ok, finding.text) for finding in examine_privacy(looked_at)]

        ((topic, ok, text),) = found()
        assert (topic, ok) == ("raw", False)
        assert f"such as {raw / 'a_0000.nii.gz'}" in text
        assert text.endswith(f"chmod o-rwx {workspace.raw}")
        assert [ok for _, ok, _ in found("group")] == [False]
        assert found("group_others_read") == []
        Path(workspace.raw).chmod(0o750)
        assert [(topic, ok) for topic, ok, _ in found()] == [("privacy", True)]
        Path(workspace.raw).chmod(0o755)
        (raw / "a_0000.nii.gz").chmod(0o600)
        assert [(topic, ok) for topic, ok, _ in found()] == [("privacy", True)]


@pytest.mark.training
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.nightly  # a minute; tests/e2e/test_pipeline.py looks at a whole run in each CI
def test_fault_77_after_a_whole_run_with_the_default_umask_nothing_is_readable_for_others(tmp_path: Path) -> None:
    from airflow_nnunet.backends import LocalBackend
    from nnunet_jobs.dataset.phantom import write_phantom
    from support.jobs import no_runner_left, wait_final
    from support.selection import CUSTOM, run_steps

    source = tmp_path / "Task05_Phantom"
    write_phantom(source, cases=5, seed=1)
    workspace = Workspace.below(tmp_path / "work", input_roots=(str(source),))
    params = RegisterParams(dataset_id=5, name="Phantom", source=str(source), holdout_cases=["phantom_001"], holdout_fraction=0.0)
    spec = JobSpec(job_id="register-00000001", step="register", params=params.to_json(), workspace=workspace)
    with no_runner_left(workspace):
        assert wait_final(LocalBackend().submit(spec)).unwrap()["train"] == 4
    assert (Path(workspace.jobs) / spec.job_id / "report.html").is_file()
    training = {"epochs": 1, "iterations": 2, "val_iterations": 1, "seed": 1, "npz": True}
    custom = {"3d_micro": CUSTOM["3d_micro"]}
    run_steps(
        workspace,
        ("preprocess", {"datasets": [5], "configurations": ["3d_micro"], "custom_configurations": custom, "folds": 2}),
        ("train", {"dataset": 5, "configuration": "3d_micro", "fold": 0, **training}),
        ("find_best_config", {"dataset": 5, "folds": [0]}),
        ("predict", {"dataset": 5, "cases": "holdout", "output": str(tmp_path / "work" / "predictions" / "p")}),
    )
    assert (tmp_path / "work" / "predictions" / "p" / "contact-sheet.html").is_file()
    assert open_to_others(*data_roots(workspace)) == []
