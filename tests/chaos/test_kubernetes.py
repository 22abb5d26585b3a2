"""Faults around pods: an API server that is away, refuses or loses its answer; users' acts; workers and triggerers that come and go.

The cluster is a stand-in, see support.cluster: real HTTP, real processes as pods.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from airflow_nnunet.backends import KubernetesBackend, Watch
from airflow_nnunet.doctor.backend import examine_backend, runs_here
from airflow_nnunet.jobs.trigger import JobTrigger
from airflow_nnunet.settings.config import NnunetConfig
from nnunet_jobs.contract.failure import FailureClass
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.contract.storage.workspace import Workspace
from support.cluster import Refusal
from support.jobs import TESTS, compile_library, make_spec, wait_for
from support.pods import NO_ROOM, PodSite, pod_options, pod_site


@pytest.fixture
def site(workspace: Workspace, tmp_path: Path) -> Iterator[PodSite]:
    with pod_site(workspace, tmp_path) as site:
        yield site


# --- the API server -------------------------------------------------------------------------------------------------
def test_fault_05_a_beating_job_asks_nothing_of_the_api_server_and_survives_its_outage(site: PodSite, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = site.begun(site.submit("outage", until=str(go)))
    watch = Watch(lost_after_s=60)
    site.backend.status(job, watch)
    asked = len(site.cluster.requests)
    site.cluster.outage = True
    for _ in range(3):
        beat = job.beat()
        wait_for(lambda beat=beat: job.beat() > beat)
        assert not site.backend.status(job, watch).final
    assert len(site.cluster.requests) == asked
    assert site.submit("outage", until=str(go)).state().attempt == 1, "a retry sees the heart beat"
    go.touch()
    assert site.end(job).unwrap()["attempt"] == 1, "the result waits for the API server a moment only"


def test_a_pod_that_waits_is_not_lost_while_the_api_server_is_away(site: PodSite) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("away")
    site.cluster.outage = True
    watch = Watch(lost_after_s=1.0, clock=site.clock)
    for _ in range(8):
        site.now += 1.0
        assert not site.backend.status(job, watch).final
    assert "kubernetes cannot be asked: the API server" in job.state().message
    site.cluster.outage = False
    site.backend.status(job, watch)
    assert "waits for a node" in job.state().message


def test_a_passing_trouble_at_create_is_tried_again_and_makes_one_pod(site: PodSite) -> None:
    """The first answer is lost after the pod was made, as by a proxy that restarts."""
    real, lost = site.cluster.put, iter([True])

    def put(namespace: str, body: dict[str, Any], status: Any) -> dict[str, Any]:
        made = real(namespace, body, status)
        if next(lost, False):
            raise Refusal(503, "the server is currently unable to handle the request")
        return made

    site.cluster.put = put  # type: ignore[method-assign]
    job = site.submit("answer")
    assert site.end(job).unwrap()["attempt"] == 1
    assert [method for method, _ in site.cluster.requests].count("POST") == 2


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (403, 'pods is forbidden: User "airflow" cannot create resource "pods"', FailureClass.CONFIG),
        (422, "Pod is invalid: spec.containers[0].image: Required value", FailureClass.CONFIG),
        (404, 'namespaces "nnunet" not found', FailureClass.CONFIG),
        (403, "pods is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1", FailureClass.LOST),
    ],
)
def test_a_refusal_says_why_and_whether_to_try_again(site: PodSite, code: int, message: str, expected: FailureClass) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "POST":
            raise Refusal(code, message)

    site.cluster.refuse = refuse
    failure = site.end(site.submit("refused")).failure
    assert failure is not None
    assert failure.failure_class is expected
    assert f"the API server says {code}: {message}" in failure.message


def test_a_pod_of_somebody_else_under_our_name_is_not_touched(site: PodSite) -> None:
    site.waiting()
    job = site.submit("foreign")
    site.cluster.pod(site.name(job))["metadata"]["labels"] = {"app": "other"}
    assert not site.backend.status(job, Watch()).final
    assert "is not ours" in job.state().message
    assert site.cluster.deletions == {}


# --- users and Airflow ----------------------------------------------------------------------------------------------
def test_fault_13_cancel_gives_the_pod_time_to_save(site: PodSite) -> None:
    job = site.begun(site.submit("cancel", Resources(grace_s=7.0), until=site.never))
    site.backend.cancel(job, "marked failed by a user")
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert failure.cancelled
    assert site.cluster.deletions == {site.name(job): 37}, "longer than the runner takes, so that it has the last word"
    wait_for(lambda: site.cluster.names() == [])


def test_fault_13_a_pod_that_does_not_obey_is_killed_by_the_cluster(site: PodSite) -> None:
    job = site.begun(site.submit("deaf", until=site.never))
    os.kill(job.state().pid, signal.SIGSTOP)  # hears neither file nor signal
    site.backend.cancel(job, "marked failed by a user")
    assert not site.backend.status(job, Watch()).final
    site.cluster.kill(site.name(job))  # the grace is over
    wait_for(lambda: site.cluster.names() == [])
    failure = site.end(job).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INTERRUPTED
    assert failure.cancelled
    assert "marked failed by a user" in failure.message


def test_a_pod_that_still_waits_is_taken_back_at_once(site: PodSite) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("early")
    site.backend.cancel(job, "cleared")
    failure = site.backend.status(job, Watch()).failure
    assert failure is not None
    assert failure.cancelled
    assert site.cluster.names() == []


def test_cancel_while_the_api_server_is_away_is_made_good(site: PodSite) -> None:
    site.waiting(conditions=[NO_ROOM])
    job = site.submit("later")
    site.cluster.outage = True
    site.backend.cancel(job, "cleared")
    assert not site.backend.status(job, Watch()).final
    site.cluster.outage = False
    failure = site.end(job).failure
    assert failure is not None
    assert failure.cancelled
    assert site.cluster.names() == []


def test_fault_01_another_worker_finds_the_pod_again(site: PodSite, tmp_path: Path) -> None:
    go, note = tmp_path / "go", tmp_path / "note"
    job = site.begun(site.submit("again", until=str(go), note=str(note)))
    options = pod_options(tmp_path, config_file=site.backend.options.config_file)
    code = (
        "import json, sys; from airflow_nnunet.backends import get_backend; from nnunet_jobs.contract.job.spec import JobSpec\n"
        "spec, options = map(json.loads, sys.argv[1:])\n"
        "print(get_backend('kubernetes', **options).submit(JobSpec.from_json(spec)).state().attempt)"
    )
    arguments = [json.dumps(job.spec().to_json()), json.dumps(options)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=clean(tmp_path))
    assert done.stdout.strip() == "1", done.stderr
    go.touch()
    assert site.end(job).unwrap()["attempt"] == 1
    assert len(note.read_text().splitlines()) == 1
    assert [method for method, _ in site.cluster.requests].count("POST") == 1


def clean(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS.parent / "plugins"), "AIRFLOW_HOME": str(home / "airflow")}


def test_fault_04_a_trigger_watches_a_pod_by_its_options_and_connection(
    site: PodSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a triggerer does it: the backend is made in the event loop from stored JSON, the connection is asked for in a thread."""
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": site.backend.options.config_file}}
    monkeypatch.setenv("AIRFLOW_CONN_CLUSTER", json.dumps(connection))
    job = site.submit("trigger", records=2)
    trigger = JobTrigger(
        job=str(job.path), backend="kubernetes", backend_options=pod_options(tmp_path, kubernetes_conn_id="cluster"), poll_interval=0.05
    )
    _, arguments = trigger.serialize()
    stored = JobTrigger(**json.loads(json.dumps(arguments)))

    async def events() -> list[Any]:
        return [event.payload async for event in stored.run()]

    assert asyncio.run(events()) == [{"job": str(job.path), "attempt": 1, "phase": "done"}]
    assert site.cluster.names() == []


def test_a_cluster_that_is_not_named_is_a_clear_error(workspace: Workspace, tmp_path: Path) -> None:
    backend = KubernetesBackend(**pod_options(tmp_path, config_file=str(tmp_path / "absent.yaml")))
    failure = backend.status(backend.submit(make_spec(workspace, "nowhere")), Watch()).failure
    assert failure is not None
    assert failure.failure_class is FailureClass.CONFIG
    assert "config_file=" in failure.message
    assert "name a connection, a kubeconfig, or set in_cluster" in failure.message


# --- within the pod -------------------------------------------------------------------------------------------------
def test_the_gpu_that_the_cluster_gave_is_leased_from_the_pods_own_ledger(workspace: Workspace, tmp_path: Path) -> None:
    """Within a pod NVML shows its own GPU only; a host's other CPU slots do not count there."""
    (tmp_path / "nvml").mkdir()
    compile_library(TESTS / "support" / "fake_nvml.c", tmp_path / "nvml" / "libnvidia-ml.so.1")
    (tmp_path / "gpus").write_text("gpu GPU-of-the-pod 24576 24000 0\n")
    environment = {
        **pod_options(tmp_path)["environment"],
        "LD_LIBRARY_PATH": str(tmp_path / "nvml"),
        "FAKE_NVML_STATE": str(tmp_path / "gpus"),
    }
    with pod_site(workspace, tmp_path, environment=environment, keep_pods=True) as site:
        job = site.submit("gpu", Resources(gpus=1, device="cuda"), show=["CUDA_VISIBLE_DEVICES"])
        result = site.end(job).unwrap()
        assert result["gpus"] == ["GPU-of-the-pod"]
        assert result["environment"] == {"CUDA_VISIBLE_DEVICES": "GPU-of-the-pod"}
        (pod,) = site.cluster.pods.values()
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert job.spec().workspace.cpu_slots == 1


# --- the doctor -----------------------------------------------------------------------------------------------------
def test_the_doctor_asks_the_cluster(site: PodSite, tmp_path: Path) -> None:
    options = pod_options(tmp_path, config_file=site.backend.options.config_file)
    config = NnunetConfig(workspace=site.workspace, backend="kubernetes", backend_options=options)
    assert not runs_here(config), "what is installed on this host does not matter"
    findings = list(examine_backend(config))
    assert all(finding.ok for finding in findings)
    text = "\n".join(map(str, findings))
    assert "Kubernetes v1.33.0 answers" in text
    assert "may create, get, list, delete pods in namespace nnunet" in text
    assert "pods for all steps can be built" in text

    def refuse(method: str, path: str) -> None:
        if method == "may create":
            raise Refusal(403, "no")

    site.cluster.refuse = refuse
    denied = list(examine_backend(config))[1]
    assert denied.blocks
    assert denied.text == "pods in namespace nnunet: may not create; apply include/kubernetes/rbac.yaml"
    site.cluster.outage = True
    (away,) = examine_backend(config)
    assert away.blocks
    assert "does not answer" in away.text
    wrong = NnunetConfig(workspace=site.workspace, backend="kubernetes", backend_options={"image": "x"})
    assert "namespace" in str(next(examine_backend(wrong)))
