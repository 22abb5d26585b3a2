"""How the local backend starts the runner: with which packages, and without Airflow's secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_nnunet.backends import LocalBackend
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import TESTS, backend, make_spec, no_runner_left, wait_final


def test_airflows_secrets_stay_with_airflow(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_DB", "_AIRFLOW_PROCESS_CONTEXT", "__AIRFLOW_SUPERVISOR_FD"]
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HOSPITAL_SETTING", "kept")
    with no_runner_left(workspace):
        result = wait_final(backend().submit(make_spec(workspace, "secrets", show=[*secrets, "HOSPITAL_SETTING"]))).unwrap()
    assert result["environment"] == {**dict.fromkeys(secrets), "HOSPITAL_SETTING": "kept"}


def test_another_interpreter_sees_our_package_and_not_our_site_packages(workspace: Workspace, tmp_path: Path) -> None:
    """Installed as a wheel into Airflow's environment, with nnU-Net in another one: the two must not mix."""
    site = tmp_path / "airflow" / "site-packages"
    for name in ("nnunet_jobs", "airflow_nnunet"):
        shutil.copytree(TESTS.parent / "plugins" / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    (site / "only_for_airflow.py").write_text("")
    other = tmp_path / "other-python"
    other.symlink_to(os.path.realpath(sys.executable))  # without this environment's packages: the runner needs none
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from airflow_nnunet.backends import LocalBackend\n"
        "from nnunet_jobs.contract.storage.workspace import Workspace\n"
        "from nnunet_jobs.contract.job.spec import JobSpec, Resources\n"
        "spec = JobSpec(job_id='other-python', step='register', workspace=Workspace.below(sys.argv[1]),\n"
        "               params={'dataset_id': 1, 'name': 'X', 'source': '/'}, resources=Resources(device='cuda', gpus=1))\n"
        "LocalBackend(python=sys.argv[2]).submit(spec)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    with no_runner_left(workspace):
        subprocess.run([sys.executable, "-c", code, str(Path(workspace.raw).parent), str(other), str(site)], env=environment, check=True)
        job = JobDir(Path(workspace.jobs) / "other-python")
        failure = wait_final(job).failure
    assert failure is not None
    assert "device='cuda': this host offers no GPU" in failure.message, job.log.read_text()
    (packages,) = Path(workspace.jobs).glob(".packages-*")
    assert [path.name for path in packages.iterdir()] == ["nnunet_jobs"]


def test_a_wrong_interpreter_is_refused_before_anything_starts() -> None:
    for python in ("python3", "/no/such/python"):
        with pytest.raises(ConfigError, match=f"python='{python}': must be the absolute path"):
            LocalBackend(python=python)
