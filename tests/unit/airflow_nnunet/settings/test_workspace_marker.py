"""What the doctor and the command say of a workspace's marker, and what a request of the prediction API does without its share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_nnunet.backends import FakeBackend
from airflow_nnunet.doctor.finding import Finding
from airflow_nnunet.doctor.marker import examine_marker
from airflow_nnunet.jobs.exceptions import JobLost
from airflow_nnunet.prediction_api.operator import RequestPredictOperator
from airflow_nnunet.prediction_api.store import Draft
from airflow_nnunet.prediction_api.tenants import load_tenant
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.workspace_memory import variable_of
from nnunet_jobs.contract.job.spec import JobSpec, make_job_id
from nnunet_jobs.contract.storage.marker import MARKER, mark_workspace
from nnunet_jobs.contract.storage.workspace import Workspace
from support.airflow import context, environment, run
from support.users import BOB, as_user, open_folder


def submit(workspace: Workspace, name: str) -> None:
    params = {"dataset": 4, "configuration": "2d", "fold": 0}
    FakeBackend().submit(JobSpec(job_id=make_job_id("train", name), step="train", params=params, workspace=workspace))


def finding(config: NnunetConfig) -> Finding:
    (found,) = examine_marker(config)
    return found


def test_the_doctor_warns_of_a_workspace_that_is_not_marked_yet(home: Path) -> None:
    said = run(["-m", "airflow_nnunet", "doctor"], environment(home, backend="fake")).stdout
    assert f"warn  workspace: {home}/nnunet/jobs is not marked yet; the first job marks it" in said


def test_the_doctor_refuses_a_workspace_that_is_not_mounted(nnunet: Path) -> None:
    config = resolve_config()
    (nnunet / "nnUNet_raw" / "Dataset004_A").mkdir(parents=True)
    submit(config.workspace, "one")
    assert finding(config).text == f"marked ({MARKER} in jobs, raw)"
    for root in ("jobs", "nnUNet_raw"):
        (nnunet / root).rename(nnunet / "elsewhere")
        missing = finding(config)
        assert missing.blocks
        assert str(nnunet / root) in missing.text
        assert "mark-workspace" in missing.text
        (nnunet / "elsewhere").rename(nnunet / root)
    assert finding(config).ok


def test_an_empty_folder_made_for_this_user_is_a_new_workspace_and_one_of_roots_may_lack_its_share() -> None:
    with open_folder(group=BOB.uid, mode=0o777) as folder:
        (folder / "shared" / "work").mkdir(mode=0o777)
        (folder / "shared" / "work").chmod(0o777)

        def first_job() -> str:
            submit(Workspace.below(folder / "shared" / "work"), "one")
            return "done"

        assert as_user(BOB, first_job)["error"] == "NotMounted"
        (folder / "shared" / "work").rmdir()
        made = as_user(BOB, lambda: (folder / "shared" / "work").mkdir() or first_job())
        assert made["result"] == "done"


def test_the_command_marks_what_is_there_and_airflow_remembers_it(home: Path) -> None:
    workspace = Workspace.below(home / "empty")
    Path(workspace.raw).mkdir(parents=True)
    env = environment(home, workspace=str(home / "empty"))
    done = run(["-m", "airflow_nnunet", "mark-workspace"], env)
    assert done.returncode == 0, done.stderr[-2000:]
    marker = json.loads((home / "empty" / "jobs" / MARKER).read_text())
    assert marker["roots"] == {"raw": workspace.raw}
    code = "from airflow_nnunet.settings.workspace_memory import DatabaseMemory as M; import sys; print('known', M().recall(sys.argv[1]))"
    assert f"known {marker['workspace']}" in run(["-c", code, workspace.jobs], env).stdout
    assert variable_of(workspace.jobs) != variable_of(str(home / "other" / "jobs"))


def test_a_request_is_not_unknown_because_its_share_is_not_mounted(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__LOST_AFTER", "0.3")
    (nnunet / "nnUNet_raw" / "Dataset004_A").mkdir(parents=True)
    mark_workspace(resolve_config().workspace)
    (nnunet / "jobs").rename(nnunet / "elsewhere")
    with pytest.raises(JobLost, match="mount the share"):
        RequestPredictOperator(task_id="predict").execute(context(run_id="p-0123456789abcdef"))
    with pytest.raises(OSError, match="mount the share"), Draft(load_tenant(None), "p-0123456789abcdef"):
        pass
    assert not (nnunet / "jobs").exists()
    assert not (nnunet / "predictions").exists(), "an upload is hidden when the share comes back"
