"""The task of a request: whom it asks, what it keeps, and that nothing is predicted twice. Servers are real, jobs the fake backend's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_nnunet.jobs.exceptions import InvalidConfig, InvalidData
from airflow_nnunet.prediction_api.operator import RequestPredictOperator
from airflow_nnunet.prediction_api.store import REQUEST_ID, Draft, StoredRequest, new_id, open_request
from airflow_nnunet.prediction_api.tenants import Tenant, check_server, load_tenant, tenant_of
from devtools.testbed.serving import DATASET, ServerProcess, make_image, make_model, make_workspace
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.results import PredictResult
from nnunet_jobs.contract.storage.files import read_json, sha256_file
from nnunet_jobs.contract.storage.predictions import read_predictions
from nnunet_jobs.contract.storage.workspace import Workspace
from support.airflow import context
from support.jobs import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("model") / "work")


@pytest.fixture(scope="module")
def server(model: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(model, folder / "server.log", temporary=folder / "tmp") as server:
        yield server


@pytest.fixture
def tenant(nnunet: Path, model: Workspace, server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Tenant:
    """A workspace of the test's own with the server's model in it."""
    for name in ("raw", "results"):
        shutil.copytree(getattr(model, name), getattr(Workspace.below(nnunet), name), symlinks=True)
    monkeypatch.setenv("AIRFLOW__NNUNET__PREDICTOR_SERVERS", f"http://127.0.0.1:9,{server.url}")
    return load_tenant(None)


def store(tenant: Tenant, *, content: bytes | None = None) -> StoredRequest:
    prediction = new_id(tenant, "alice", None)
    with Draft(tenant, prediction) as draft:
        path = draft.image(0, ".nii.gz")
        if content is None:
            make_image(path)
        else:
            path.write_bytes(content)
        draft.complete(dataset=DATASET, model=None)
        draft.publish()
    return open_request(tenant.workspace, prediction)


def execute(stored: StoredRequest) -> dict[str, Any]:
    operator = RequestPredictOperator(task_id="predict", deferrable=False)
    result: dict[str, Any] = operator.execute(context(dag_id="nnunet_predictions", run_id=stored.id, task_id="predict"))
    return result


def jobs(tenant: Tenant) -> list[str]:
    folder = Path(tenant.workspace.jobs)
    return [path.name for path in folder.iterdir() if path.name.startswith("predict")] if folder.is_dir() else []


def served(server: ServerProcess) -> float:
    return server.metric('nnunet_requests_total{status="200"}')


def test_a_server_answers_and_the_next_try_finds_its_answer(tenant: Tenant, server: ServerProcess) -> None:
    stored, before = store(tenant), served(server)
    first, second = execute(stored), execute(stored)
    assert (first["predicted"], second["already_done"]) == (1, 1)
    for result in (first, second):
        assert PredictResult.from_json(result).to_json() == result, "the same keys as a job's result has"
    assert served(server) == before + 1, "nothing is predicted twice"
    assert not jobs(tenant)
    case = read_predictions(stored.output)["cases"][stored.id]
    assert case["status"] == "predicted"
    assert set(case["volumes_ml"]) == {"head", "tail"}
    record = read_json(stored.output / ".cases" / f"{stored.id}.json")
    assert record["files"] == {case["file"]: sha256_file(stored.output / case["file"])}
    with open(stored.output / case["file"], "r+b") as file:
        file.truncate(100)
    assert execute(stored)["predicted"] == 1, "a damaged answer is no answer"


def test_a_job_that_an_earlier_try_began_is_attached_to_and_no_server_asked(
    tenant: Tenant, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, before = store(tenant), served(server)
    with monkeypatch.context() as away:
        away.setenv("AIRFLOW__NNUNET__PREDICTOR_SERVERS", "http://127.0.0.1:9")
        execute(stored)
    (job,) = jobs(tenant)
    execute(stored)
    assert jobs(tenant) == [job]
    assert served(server) == before


def test_a_server_of_another_workspace_is_not_believed(tenant: Tenant, server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    root = tenant.workspace.model_root("m1")
    shutil.rmtree(root)
    make_model(tenant.workspace, "m1", seed=9)  # the same name, other weights
    stored = store(tenant)
    execute(stored)
    assert "another workspace" in caplog.text
    assert len(jobs(tenant)) == 1


def test_a_server_that_has_no_place_is_not_waited_for(
    tenant: Tenant, model: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerProcess(model, tmp_path / "server.log", "--waiting", "1", temporary=tmp_path / "tmp") as full:
        monkeypatch.setenv("AIRFLOW__NNUNET__PREDICTOR_SERVERS", full.url)
        with full.client() as client:
            # A request whose body never ends has the one place.
            def endless() -> Iterator[bytes]:
                yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
                wait_for(lambda: bool(jobs(tenant)), timeout_s=60, what="the job of the request")

            stored = store(tenant)
            with ThreadPoolExecutor(1) as pool:
                held = pool.submit(
                    client.post,
                    f"/v1/models/{DATASET}/predict",
                    content=endless(),
                    headers={"Content-Type": "multipart/form-data; boundary=b"},
                )
                wait_for(lambda: full.metric("nnunet_requests_inside") == 1, timeout_s=30, what="the place to be taken")
                execute(stored)
                assert held.result().status_code == 422
    assert len(jobs(tenant)) == 1


def test_a_server_that_is_killed_while_it_works_costs_no_retry(
    tenant: Tenant, model: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerProcess(model, tmp_path / "server.log", temporary=tmp_path / "tmp") as dying:
        monkeypatch.setenv("AIRFLOW__NNUNET__PREDICTOR_SERVERS", dying.url)
        dying.process.send_signal(signal.SIGSTOP)  # takes the connection and never answers
        stored = store(tenant)
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(execute, stored)
            wait_for(lambda: _connected(dying.url), timeout_s=30, what="the task's connection")
            os.kill(dying.process.pid, signal.SIGKILL)
            task.result(timeout=60)
    assert len(jobs(tenant)) == 1


def test_a_broken_case_fails_with_the_servers_words_and_without_a_job(tenant: Tenant) -> None:
    stored = store(tenant, content=b"\x1f\x8bnothing")
    with pytest.raises(InvalidData, match="data: "):
        execute(stored)
    case = read_predictions(stored.output)["cases"][stored.id]
    assert case["status"] == "failed"
    assert case["reason"]
    assert not jobs(tenant)


def test_a_run_that_no_request_has_made_is_refused(tenant: Tenant) -> None:
    for run_id in ("manual__2026-01-01", "p-" + "0" * 32, "../../etc"):
        operator = RequestPredictOperator(task_id="predict", deferrable=False)
        with pytest.raises(InvalidConfig, match="POST /nnunet-api/predictions"):
            operator.execute(context(run_id=run_id))


@pytest.fixture
def teams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "teams"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__NNUNET__TEAMS", str(folder))
    return folder


TEAM = "pool: {{slots: 2}}\nnnunet: {{workspace: {workspace}}}\npredictions: {{members: [anna], quota: 3{more}}}\n"


def test_a_teams_request_stays_in_the_teams_workspace_and_goes_to_no_other_server(
    tenant: Tenant, server: ServerProcess, teams: Path, tmp_path: Path
) -> None:
    (teams / "radiology.yaml").write_text(TEAM.format(workspace=tmp_path / "radiology", more=""))
    own, common = tenant_of("anna"), tenant_of("ben")
    assert (own.team, own.dag_id, own.quota, own.servers) == ("radiology", "nnunet_predictions_radiology", 3, ())
    assert (common.team, common.servers) == (None, tenant.servers)
    for name in ("raw", "results"):
        shutil.copytree(getattr(tenant.workspace, name), getattr(own.workspace, name), symlinks=True)
    stored, before = store(own), served(server)
    assert stored.folder.is_relative_to(tmp_path / "radiology")
    operator = RequestPredictOperator(task_id="predict", deferrable=False, team="radiology")
    operator.execute(context(dag_id=own.dag_id, run_id=stored.id))
    assert served(server) == before, "the section's server has the common workspace's models"
    assert (len(jobs(own)), len(jobs(tenant))) == (1, 0)
    elsewhere = RequestPredictOperator(task_id="predict", deferrable=False)
    with pytest.raises(InvalidConfig, match="no request of that id"):
        elsewhere.execute(context(run_id=stored.id))


def test_a_broken_team_file_makes_nobody_a_user_of_the_common_tenant(nnunet: Path, teams: Path, tmp_path: Path) -> None:
    (teams / "good.yaml").write_text(TEAM.format(workspace=tmp_path / "good", more=""))
    (teams / "other.yaml").write_text(TEAM.format(workspace=tmp_path / "other", more=""))
    with pytest.raises(ConfigError, match="'anna': is a member of team good already"):
        tenant_of("ben")
    assert tenant_of("anna").team == "good"


def test_ids_are_one_for_a_key_of_a_user_and_otherwise_never_the_same(nnunet: Path, teams: Path, tmp_path: Path) -> None:
    (teams / "radiology.yaml").write_text(TEAM.format(workspace=tmp_path / "radiology", more=""))
    tenants = (load_tenant(None), load_tenant("radiology"))
    ids = {new_id(tenant, user, key) for tenant in tenants for user in ("anna", "ben") for key in ("1", "2")}
    assert len(ids) == 8
    assert ids == {new_id(tenant, user, key) for tenant in tenants for user in ("anna", "ben") for key in ("1", "2")}
    assert new_id(tenants[0], "anna", None) != new_id(tenants[0], "anna", None)
    assert all(REQUEST_ID.fullmatch(found) for found in ids)


def test_a_request_of_a_shared_workspace_is_its_groups_alone(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__SHARING", "group")
    before = os.umask(0o077)
    try:
        stored = store(load_tenant(None))
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o7777 for path in (stored.folder, stored.folder / "images", *stored.image_paths)]
    assert modes == [0o2770, 0o2770, 0o660]
    assert (stored.folder / "request.json").stat().st_mode & 0o777 == 0o660


def test_what_is_not_published_is_removed(nnunet: Path) -> None:
    tenant = load_tenant(None)
    with pytest.raises(RuntimeError), Draft(tenant, new_id(tenant, "anna", None)) as draft:
        make_image(draft.image(0, ".nii.gz"))
        draft.complete(dataset=DATASET, model=None)
        raise RuntimeError
    assert not list(tenant.requests.iterdir())


@pytest.mark.parametrize("option", ["quota", "limit", "keep_days", "upload_mib"])
def test_limits_that_let_nothing_through_are_refused(nnunet: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", "-1", "many"):
        monkeypatch.setenv(f"AIRFLOW__NNUNET__PREDICTIONS_{option.upper()}", value)
        with pytest.raises(ConfigError, match=f"predictions_{option}="):
            load_tenant(None)


@pytest.mark.parametrize("address", ["http://10.0.0.1:8600", "http://pacs:8600", "ftp://127.0.0.1", "unix:relative", "127.0.0.1:8600"])
def test_images_never_leave_the_machine_in_the_clear(address: str) -> None:
    with pytest.raises(ConfigError, match="predictor_servers"):
        check_server(address)


def _connected(url: str) -> bool:
    port = f"{int(url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return any(line[2].endswith(f":{port}") and line[3] == "01" for line in lines)
