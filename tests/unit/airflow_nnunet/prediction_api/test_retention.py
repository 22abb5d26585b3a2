"""What is kept and removed of the prediction API's requests, and how many uploads a team may have at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet.prediction_api import queue, retention
from airflow_nnunet.prediction_api.store import Draft, new_id
from airflow_nnunet.prediction_api.tenants import Tenant, load_tenant
from airflow_nnunet.prediction_api.uploads import MARK, in_progress, require_room
from nnunet_jobs.contract.http.problems import Problem
from support.auth import api_server
from support.supervisor import Supervisor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")

OLD_DAYS = 40


@pytest.fixture
def tenant(nnunet: Path) -> Tenant:
    found = load_tenant(None)
    found.requests.mkdir(parents=True)
    return found


def stored(tenant: Tenant, prediction: str, *, days: float = OLD_DAYS) -> Path:
    folder = tenant.requests / prediction
    (folder / "images").mkdir(parents=True)
    (folder / "request.json").write_text("{}")
    os.utime(folder, (time.time() - days * 86400,) * 2)
    return folder


# --- retention --------------------------------------------------------------------------------------------------
def test_a_living_request_is_never_taken_for_an_unknown_run(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's answers hold ids in their words, and an id may hold any number."""
    supervisor = Supervisor.installed(monkeypatch)
    living, gone, failed = (f"p-{digits:0>32}" for digits in ("404", "40a", "1"))
    folders = {name: stored(tenant, name) for name in (living, gone, failed)}
    supervisor.broken[living] = 500
    supervisor.runs[failed] = "failed"
    with pytest.raises(retention.SweepIncomplete, match="1 could not be removed, the others were") as caught:
        retention.remove_old()
    assert living in str(caught.value)
    assert {name for name, folder in folders.items() if folder.exists()} == {living}


def test_one_folder_that_cannot_be_deleted_does_not_end_the_sweep(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    Supervisor.installed(monkeypatch)
    names = [f"p-{number:032x}" for number in range(3)]
    folders = [stored(tenant, name) for name in names]
    shutil.rmtree(folders[0] / "images")
    (folders[0] / "request.json").unlink()
    (folders[0] / "request.json").mkdir()  # what is no file cannot be unlinked, not even by root
    os.utime(folders[0], (time.time() - OLD_DAYS * 86400,) * 2)
    with pytest.raises(retention.SweepIncomplete, match=names[0]):
        retention.remove_old()
    assert [folder.exists() for folder in folders] == [True, False, False]


def test_one_teams_wrong_setting_does_not_end_the_sweep(tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Supervisor.installed(monkeypatch)
    teams = tmp_path / "teams"
    teams.mkdir()
    (teams / "a.yaml").write_text(
        f"pool: {{slots: 1}}\nnnunet: {{workspace: {tmp_path / 'a'}}}\npredictions: {{servers: ['http://far.example:8600']}}\n"
    )
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(teams))
    folder = stored(tenant, f"p-{1:032x}")
    with pytest.raises(retention.SweepIncomplete, match=r"far\.example"):
        retention.remove_old()
    assert not folder.exists()


# --- uploads ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def database(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("database") / "airflow.db"
    shutil.copy(migrated / "airflow.db", path)
    with api_server(path):
        yield


@pytest.fixture
def small(tenant: Tenant, database: None, monkeypatch: pytest.MonkeyPatch) -> Tenant:
    """A tenant with a quota of two and a queue of three, and no run."""
    for name, value in {"QUOTA": "2", "LIMIT": "3", "FREE_MIB": "1"}.items():
        monkeypatch.setenv(f"AIRFLOW__NNUNET__PREDICTIONS_{name}", value)
    return load_tenant(None)


def test_uploads_that_are_coming_in_count_towards_the_quota(small: Tenant) -> None:
    ids = [new_id(small, "anna", None) for _ in range(3)]
    with Draft(small, ids[0], size=10), Draft(small, ids[1], size=10):
        with pytest.raises(Problem) as caught:
            queue.require_place(small, ids[2], 10, new=True)
        assert (caught.value.status, caught.value.detail) == (429, "Too many unfinished predictions: the limit for your team is 2")
        queue.require_place(small, ids[0], 10, new=True)  # another upload of the same request
        queue.require_place(small, ids[2], 10, new=False)  # its run is there already
    queue.require_place(small, ids[2], 10, new=True)


def test_an_upload_whose_server_was_killed_counts_no_longer(small: Tenant) -> None:
    code = """
import os, sys
from airflow_nnunet.prediction_api.tenants import load_tenant
from airflow_nnunet.prediction_api.store import Draft, new_id
tenant = load_tenant(None)
Draft(tenant, new_id(tenant, "anna", None), size=10).__enter__()
print("up", flush=True)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert len(list(small.requests.glob(f".partial-*/{MARK}"))) == 1
    assert in_progress(small) == []


def test_free_disk_is_looked_at_before_the_first_byte(small: Tenant) -> None:
    free = shutil.disk_usage(small.requests).free
    require_room(small, 1000, [])
    with pytest.raises(Problem) as caught:
        require_room(small, 2 * free, [])
    assert caught.value.status == 507
    with Draft(small, new_id(small, "anna", None), size=2 * free):
        (upload,) = in_progress(small)
        assert free < upload.left <= 2 * free
        with pytest.raises(Problem) as caught:
            require_room(small, 1000, [upload])
        assert caught.value.status == 507, "what another upload has declared is taken already"
        with pytest.raises(Problem) as caught:
            queue.require_place(small, new_id(small, "bert", None), 1000, new=True)
        assert caught.value.status == 507, "and so it is where a request comes in"
    for new in (True, False):
        with pytest.raises(Problem) as caught:
            queue.require_place(small, new_id(small, "anna", None), 2 * free, new=new)
        assert caught.value.status == 507


def test_a_request_on_the_disk_holds_no_mark(small: Tenant) -> None:
    prediction = new_id(small, "anna", None)
    with Draft(small, prediction, size=10) as draft:
        draft.image(0, ".nii.gz").write_bytes(b"x")
        draft.complete(dataset="Dataset004_Hip", model=None)
        draft.publish()
    assert sorted(os.listdir(small.requests / prediction)) == ["images", "request.json"]
