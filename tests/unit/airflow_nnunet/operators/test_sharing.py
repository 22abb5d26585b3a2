"""A user without rights at submit and before the doctor; the option from airflow.cfg to the workspace."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.backends import FakeBackend
from airflow_nnunet.cli.datasets import log_command
from airflow_nnunet.doctor.command import _withdrawals, examine
from airflow_nnunet.operators import TrainFoldOperator
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.workspace import Workspace
from support.airflow import context
from support.users import ALICE, BOB, GROUP, MALLORY, as_user, open_folder


def task() -> TrainFoldOperator:
    return TrainFoldOperator(task_id="task", dataset=4, configuration="2d", fold=0)


def submit(workspace: Workspace, *, run: str = "run") -> str:
    spec = task().job_spec(context(run_id=run), NnunetConfig(workspace=workspace, backend="fake"))
    return str(FakeBackend().submit(spec).path)


def test_the_option_reaches_the_workspace(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_config().workspace.sharing == "private"
    monkeypatch.setenv("AIRFLOW__NNUNET__SHARING", "group")
    assert resolve_config().workspace.sharing == "group"
    monkeypatch.setenv("AIRFLOW_CONN_OTHERS", json.dumps({"conn_type": "nnunet", "extra": {"sharing": "group_others_read"}}))
    assert resolve_config("others").workspace.sharing == "group_others_read"
    monkeypatch.setenv("AIRFLOW__NNUNET__SHARING", "everyone")
    with pytest.raises(ConfigError, match="sharing='everyone'"):
        resolve_config()


def test_a_submitted_job_is_the_groups_and_the_workers_umask_comes_back(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        job = Path(submit(Workspace.below(tmp_path / "work", sharing="group")))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert stat.S_IMODE((job / "spec.json").stat().st_mode) == 0o660
    assert {stat.S_IMODE(path.stat().st_mode) for path in (job, job.parent, job.parent.parent)} == {0o2770}


def test_fault_jobs_that_cannot_be_written_are_refused_at_submit_with_the_mend(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder(group=GROUP, mode=0o2775) as folder:
        workspace = Workspace.below(folder / "shared" / "work", sharing="group_others_read")
        submit(Workspace.below(nnunet))  # imports what it needs while it may
        assert "result" in as_user(ALICE, lambda: submit(workspace))
        jobs = Path(workspace.jobs)
        refused = as_user(MALLORY, lambda: submit(workspace, run="another"))
        assert (refused["error"], refused["failure_class"]) == ("ConfigError", "config")
        assert f"{jobs} belongs to {ALICE.uid}:{GROUP} with mode drwxrwsr-x" in refused["message"]
        monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(folder / "shared" / "work"))
        refused = as_user(MALLORY, lambda: task().execute(context()))
        assert refused["error"] == "InvalidConfig"
        assert "permission denied for user" in refused["message"]


def test_a_dataset_that_may_not_be_read_is_said_in_words(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder(group=GROUP, mode=0o2775) as folder:
        raw = folder / "shared" / "nnUNet_raw"
        raw.mkdir(mode=0o700)
        monkeypatch.setenv("AIRFLOW__NNUNET__WORKSPACE", str(folder / "shared"))

        def log() -> str:
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
                log_command(argparse.Namespace(conn_id=None, team=None, dataset="4", json=False))
            return said.getvalue()

        assert "not registered" in log()  # once as root, to import what saying it needs
        assert as_user(BOB, log)["result"].startswith(f"{raw}: permission denied for user {BOB.uid} (groups {BOB.uid}, {GROUP})")
        config = NnunetConfig(workspace=Workspace.below(folder / "shared"))
        assert as_user(BOB, lambda: [finding.topic for finding in _withdrawals(config)])["result"] == []


def test_the_doctor_tells_whose_a_folder_is_and_what_is_not_shared() -> None:
    with open_folder(group=GROUP, mode=0o2770) as folder:
        (folder / "shared" / "nnUNet_raw" / ".locks").mkdir(parents=True)
        (folder / "shared" / "nnUNet_raw").chmod(0o775)
        os.chown(folder / "shared" / "nnUNet_raw", ALICE.uid, GROUP)
        config = NnunetConfig(workspace=Workspace.below(folder / "shared", sharing="group"))

        def raw() -> list[list[Any]]:
            found = examine(config)
            return [[finding.topic, finding.ok, finding.blocks, finding.text] for finding in (next(found), next(found))]

        (topic, ok, blocks, text), *_ = as_user(MALLORY, raw)["result"]
        assert (topic, ok, blocks) == ("raw", False, True)
        assert f"cannot write as user {MALLORY.uid} (groups {MALLORY.uid}): {folder}/shared belongs to " in text
        (topic, ok, blocks, text), *_ = as_user(BOB, raw)["result"]
        assert (topic, ok, blocks) == ("raw", False, True)
        assert f"{folder}/shared/nnUNet_raw/.locks belongs to " in text
        os.chown(folder / "shared" / "nnUNet_raw" / ".locks", ALICE.uid, GROUP)
        (folder / "shared" / "nnUNet_raw" / ".locks").chmod(0o2770)
        (topic, ok, blocks, text), *_ = as_user(BOB, raw)["result"]
        assert (topic, ok, blocks) == ("raw", False, False)
        assert f"its owner runs: chmod 2770 {folder}/shared/nnUNet_raw" in text
