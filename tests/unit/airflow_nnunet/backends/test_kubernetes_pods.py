"""Pods of jobs: what each step's sees and may do, checked with the official client's models. Nothing here needs a cluster."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from kubernetes import client
from kubernetes.client import models as k8s

from airflow_nnunet.backends import get_backend
from airflow_nnunet.backends.kubernetes import PodOptions
from airflow_nnunet.backends.kubernetes.pod import build_pod
from airflow_nnunet.jobs.trigger import JobTrigger
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.steps.params import STEPS
from nnunet_jobs.contract.storage.workspace import Workspace
from support.airflow import PROJECT
from support.pods import TEMPLATE, pod_options

INCLUDE = PROJECT / "include" / "kubernetes"
PARAMS: dict[str, dict[str, Any]] = {
    "register": {"dataset_id": 4, "name": "Hippocampus", "source": "/data"},
    "preprocess": {"datasets": [4]},
    "train": {"dataset": 4, "configuration": "3d_fullres", "fold": 0},
    "find_best_config": {"dataset": 4},
    "predict": {"dataset": 4, "cases": "holdout", "output": "/out"},
}
LABELS = {
    "dag_id": "nightly",
    "run_id": "scheduled__2026-01-01T01:00:00+00:00",
    "task_id": "train",
    "map_index": "3",
    "triggered_by": "anna",
}


@pytest.fixture
def folders(tmp_path: Path) -> Workspace:
    """A workspace whose folders are there: input, own trainers, and the private folder among them."""
    for name in ("incoming", "trainers", "work/nnUNet_raw/.private"):
        (tmp_path / name).mkdir(parents=True)
    return Workspace.below(tmp_path / "work", input_roots=(str(tmp_path / "incoming"),), trainer_paths=(str(tmp_path / "trainers"),))


def make(workspace: Workspace, step: str, **resources: Any) -> JobSpec:
    return JobSpec(
        job_id=make_job_id(step, "dag", "run"),
        step=step,
        params=PARAMS[step],
        workspace=workspace,
        resources=Resources(**resources),
        labels=LABELS,
    )


def build(tmp_path: Path, spec: JobSpec, *, attempt: int = 1, **options: Any) -> k8s.V1Pod:
    job = JobDir.create(spec)
    return build_pod(PodOptions(**pod_options(tmp_path, **options)), job, spec, attempt)


def seen(pod: k8s.V1Pod, below: Path) -> dict[str, str]:
    """What the job's container sees of the test's folder: relative path to rw, ro or hidden."""
    (container,) = pod.spec.containers
    claims = {volume.name for volume in pod.spec.volumes if volume.persistent_volume_claim}
    found = {}
    for mount in container.volume_mounts:
        if Path(mount.mount_path).is_relative_to(below):
            kind = ("ro" if mount.read_only else "rw") if mount.name in claims else "hidden" if mount.read_only else "own"
            found[str(Path(mount.mount_path).relative_to(below))] = kind
    return found


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("register", {"work/nnUNet_raw": "rw", "incoming": "ro"}),
        ("preprocess", {"work/nnUNet_raw": "ro", "work/nnUNet_raw/.private": "hidden", "work/nnUNet_preprocessed": "rw"}),
        (
            "train",
            {
                "work/nnUNet_raw": "ro", "work/nnUNet_raw/.private": "hidden", "work/nnUNet_preprocessed": "ro",
                "work/nnUNet_results": "rw", "incoming": "ro", "trainers": "ro",
            },
        ),
        (
            "find_best_config",
            {
                "work/nnUNet_raw": "ro", "work/nnUNet_raw/.private": "hidden", "work/nnUNet_preprocessed": "ro",
                "work/nnUNet_results": "rw", "trainers": "ro",
            },
        ),
        (
            "predict",
            {
                "work/nnUNet_raw": "ro", "work/nnUNet_raw/.private": "rw", "work/nnUNet_results": "ro", "work/predictions": "rw",
                "incoming": "ro", "trainers": "ro",
            },
        ),
    ],
)  # fmt: skip
def test_each_step_sees_only_the_folders_it_works_with(folders: Workspace, tmp_path: Path, step: str, expected: dict[str, str]) -> None:
    spec = make(folders, step)
    own = {f"work/jobs/{spec.job_id}": "rw", "work/leases": "own"}
    assert seen(build(tmp_path, spec), tmp_path) == {**expected, **own}


@pytest.mark.parametrize("step", STEPS)
def test_pods_of_all_steps_are_what_the_api_takes(folders: Workspace, tmp_path: Path, step: str) -> None:
    """Read by the official client's models, which check required fields, nothing is missing, unknown or changed."""
    spec = make(folders, step, gpus=1, cpus=4, memory_mib=32768)
    pod = build(tmp_path, spec, attempt=2)
    api = client.ApiClient()
    sent = api.sanitize_for_serialization(pod)
    again = api._ApiClient__deserialize(json.loads(json.dumps(sent)), k8s.V1Pod)
    assert api.sanitize_for_serialization(again) == sent
    assert again.metadata.name.startswith(spec.job_id)
    assert again.metadata.name.endswith("-2")
    assert len(again.metadata.name) <= 63
    assert again.metadata.namespace == "nnunet"
    (container,) = again.spec.containers
    path = str(Path(folders.jobs) / spec.job_id)
    assert [*container.command, *container.args] == [
        "python", "-m", "support.jobs", "run", path, "--attempt", "2", "--own-log",
    ]  # fmt: skip
    names = {volume.name for volume in again.spec.volumes}
    assert len(names) == len(again.spec.volumes)
    assert {mount.name for mount in container.volume_mounts} <= names
    assert again.spec.restart_policy == "Never"
    assert again.spec.active_deadline_seconds is None
    assert again.spec.termination_grace_period_seconds > spec.resources.grace_s
    assert api.sanitize_for_serialization(build(tmp_path, spec, attempt=2)) == sent, "who builds it again builds the same"


@pytest.mark.parametrize("step", STEPS)
def test_fault_58_every_pod_has_the_least_privilege(folders: Workspace, tmp_path: Path, step: str) -> None:
    pod = build(tmp_path, make(folders, step))
    (container,) = pod.spec.containers
    security, own = pod.spec.security_context, container.security_context
    assert security.run_as_non_root
    assert security.run_as_user > 0
    assert security.seccomp_profile.type == "RuntimeDefault"
    assert security.fs_group is None, "kubelet would open .private to that group"
    assert own.read_only_root_filesystem
    assert own.capabilities.drop == ["ALL"]
    assert not own.capabilities.add
    assert own.allow_privilege_escalation is False
    assert own.privileged is False
    assert pod.spec.automount_service_account_token is False
    assert not any((pod.spec.host_network, pod.spec.host_pid, pod.spec.host_ipc))
    assert all(volume.persistent_volume_claim or volume.empty_dir for volume in pod.spec.volumes)
    assert not any("AIRFLOW" in item.name for item in container.env)


def test_labels_say_whose_job_it_is_but_not_who_asked(folders: Workspace, tmp_path: Path) -> None:
    spec = make(folders, "train")
    labels = build(tmp_path, spec, attempt=3).metadata.labels
    assert labels["nnunet-job-id"] == spec.job_id
    assert labels["nnunet-attempt"] == "3"
    assert labels["dag_id"] == "nightly"
    assert labels["run_id"].startswith("scheduled__2026-01-01T010000")
    assert "anna" not in json.dumps(labels)
    assert labels["app.kubernetes.io/part-of"] == "nnunet", "the template's own are kept"


def test_two_airflows_in_one_namespace_do_not_meet(folders: Workspace, tmp_path: Path) -> None:
    other = Workspace.below(tmp_path / "other")
    first, second = build(tmp_path, make(folders, "train")), build(tmp_path, make(other, "train"))
    assert first.metadata.labels["nnunet-job-id"] == second.metadata.labels["nnunet-job-id"]
    assert first.metadata.name != second.metadata.name
    assert first.metadata.labels["nnunet-jobs-folder"] != second.metadata.labels["nnunet-jobs-folder"]


# --- resources ------------------------------------------------------------------------------------------------------
def test_cores_memory_gpus_and_shared_memory_come_from_the_task(folders: Workspace, tmp_path: Path) -> None:
    pod = build(tmp_path, make(folders, "train", gpus=2, cpus=6, memory_mib=20000))
    (container,) = pod.spec.containers
    wanted = {"cpu": "6", "memory": "20000Mi", "nvidia.com/gpu": "2"}
    assert container.resources.requests == container.resources.limits == wanted
    volumes = {volume.name: volume.empty_dir for volume in pod.spec.volumes}
    assert (volumes["nnunet-shm"].medium, volumes["nnunet-shm"].size_limit) == ("Memory", "8192Mi")
    assert next(mount.mount_path for mount in container.volume_mounts if mount.name == "nnunet-shm") == "/dev/shm"
    assert "NVIDIA_VISIBLE_DEVICES" not in {item.name for item in container.env}


def test_what_a_task_does_not_name_comes_from_the_template(folders: Workspace, tmp_path: Path) -> None:
    (container,) = build(tmp_path, make(folders, "preprocess")).spec.containers
    assert container.resources.requests == {"cpu": "4", "memory": "16Gi"}
    assert container.resources.limits == {"memory": "48Gi"}
    (container,) = build(tmp_path, make(folders, "preprocess"), pod_template_file=None).spec.containers
    assert not container.resources.requests


@pytest.mark.parametrize(
    ("resources", "options", "expected"),
    [
        ({"gpus": 1}, {"gpu_resource": "nvidia.com/mig-3g.20gb"}, {"nvidia.com/mig-3g.20gb": "1"}),
        ({"gpus": 1, "device": "cpu"}, {}, {}),
        ({"gpus": 1, "device": "auto"}, {"gpu_resource": ""}, {}),
        ({"gpus": 0}, {}, {}),
    ],
)
def test_gpus_are_asked_for_by_the_clusters_name(
    folders: Workspace, tmp_path: Path, resources: dict[str, Any], options: dict[str, Any], expected: dict[str, str]
) -> None:
    (container,) = build(tmp_path, make(folders, "train", **resources), **options).spec.containers
    gpus = {name: amount for name, amount in container.resources.limits.items() if "/" in name}
    assert gpus == expected
    hidden = {item.name: item.value for item in container.env}.get("NVIDIA_VISIBLE_DEVICES")
    assert hidden == (None if expected else "void"), "an image that asks for all GPUs gets none that were not requested"


def test_a_gpu_where_the_cluster_has_none_is_refused(folders: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device='cuda': .*set gpu_resource"):
        build(tmp_path, make(folders, "train", gpus=1, device="cuda"), gpu_resource="")


# --- volumes and users ----------------------------------------------------------------------------------------------
def test_the_longest_folder_decides_which_claim_holds_a_root(folders: Workspace, tmp_path: Path) -> None:
    volumes = {str(tmp_path): "all", str(tmp_path / "work" / "nnUNet_preprocessed"): {"claim": "fast", "sub_path": "team-a"}}
    pod = build(tmp_path, make(folders, "train"), volumes=volumes)
    claims = {volume.name: volume.persistent_volume_claim.claim_name for volume in pod.spec.volumes if volume.persistent_volume_claim}
    (container,) = pod.spec.containers
    where = {mount.mount_path: (claims.get(mount.name), mount.sub_path) for mount in container.volume_mounts}
    assert where[folders.preprocessed] == ("fast", "team-a")
    assert where[folders.raw] == ("all", "work/nnUNet_raw")
    assert sorted(claims.values()) == ["all", "fast"], "a claim is one volume, however often it is mounted"


def test_a_folder_that_no_claim_holds_is_named(folders: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"volumes=.*no claim holds .*nnUNet_preprocessed \(preprocessed\)"):
        build(tmp_path, make(folders, "preprocess"), volumes={folders.raw: "a", folders.jobs: "c"})


def test_a_job_runs_as_the_owner_of_its_folder_and_never_as_root(folders: Workspace, tmp_path: Path) -> None:
    spec = make(folders, "train")
    if os.geteuid() == 0:
        with pytest.raises(ConfigError, match=r"user=None: .* belongs to root, and jobs never run as root"):
            build(tmp_path, spec, user=None)
        os.chown(folders.jobs, 1234, 5678)
        os.chown(Path(folders.jobs) / spec.job_id, 1234, 5678)
    pod = build(tmp_path, spec, user=None)
    owner = Path(folders.jobs).stat()
    assert (pod.spec.security_context.run_as_user, pod.spec.security_context.run_as_group) == (owner.st_uid, owner.st_gid)


# --- the template ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hostNetwork": True}, "hostNetwork must not be true"),
        ({"hostPID": True}, "hostPID must not be true"),
        ({"activeDeadlineSeconds": 3600}, "use execution_timeout of the task"),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/var/run/docker.sock"}}]}, "gives a job the whole node"),
        ({"automountServiceAccountToken": True}, "automountServiceAccountToken must be false"),
        (
            {"containers": [{"name": "job"}, {"name": "side", "image": "x", "securityContext": {"privileged": True}}]},
            "privileged must not be",
        ),
        ({"containers": [{"name": "job"}, {"name": "side", "image": "x"}]}, "container side: needs a securityContext"),
        (
            {"containers": [{"name": "job"}, {"name": "side", "image": "x", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
            "capabilities SYS_ADMIN must not be added",
        ),
    ],
)
def test_fault_58_a_template_may_add_but_not_loosen(folders: Workspace, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(json.dumps({"spec": {"containers": [{"name": "job"}], **change}}))
    with pytest.raises(ConfigError, match=named):
        build(tmp_path, make(folders, "train"), pod_template_file=str(template))


def test_a_template_adds_where_pods_run_and_what_else_they_need(folders: Workspace, tmp_path: Path) -> None:
    template = tmp_path / "template.yaml"
    spec = {
        "containers": [{"name": "main", "volumeMounts": [{"name": "cache", "mountPath": "/cache"}], "securityContext": {
            "seLinuxOptions": {"level": "s0:c1"}, "privileged": True, "allowPrivilegeEscalation": True, "runAsNonRoot": False,
            "readOnlyRootFilesystem": False, "capabilities": {"add": ["SYS_ADMIN"]}}}],
        "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "kernels"}}],
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "night",
    }  # fmt: skip
    template.write_text(json.dumps({"spec": spec}))
    pod = build(tmp_path, make(folders, "train"), pod_template_file=str(template))
    (container,) = pod.spec.containers
    assert pod.spec.node_selector == {"gpu": "a100"}
    assert pod.spec.tolerations[0].key == "gpu"
    assert pod.spec.image_pull_secrets[0].name == "registry"
    assert pod.spec.priority_class_name == "night"
    assert "/cache" in {mount.mount_path for mount in container.volume_mounts}
    assert container.security_context.se_linux_options.level == "s0:c1"
    own = container.security_context
    assert (own.privileged, own.allow_privilege_escalation, own.run_as_non_root, own.read_only_root_filesystem) == (
        False,
        False,
        True,
        True,
    )
    assert (own.capabilities.add, own.capabilities.drop) == (None, ["ALL"]), "what it says of the job's own container does not count"


@pytest.mark.parametrize(("text", "named"), [("a: [", "not a pod"), ("[]", "not a pod"), ("spec: {}", "not a pod"), (None, "no such file")])
def test_a_template_that_is_none_is_named(folders: Workspace, tmp_path: Path, text: str | None, named: str) -> None:
    template = tmp_path / "template.yaml"
    if text is not None:
        template.write_text(text)
    with pytest.raises(ConfigError, match=rf"pod_template_file='{template}': {named}"):
        build(tmp_path, make(folders, "train"), pod_template_file=str(template))


# --- options and what is delivered ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": ""}, "image=''"),
        ({"namespace": "No_Such"}, "namespace='No_Such': must be the name of a namespace"),
        ({"volumes": {"relative": "claim"}}, "must be an absolute path"),
        ({"volumes": {"/data": {"claim": "x", "sub_path": "../y"}}}, "sub_path must be relative"),
        ({"volumes": {"/data": {"pvc": "x"}}}, "must be a claim's name"),
        ({"gpu_resource": "gpu"}, "gpu_resource='gpu'"),
        ({"user": "0:0"}, "user='0:0': must be uid:gid as numbers, and not root's"),
        ({"config_file": "kubeconfig"}, "config_file='kubeconfig': must be an absolute path"),
        ({"in_cluster": True, "config_file": "/x"}, "cannot go with in_cluster"),
        ({"environment": {"A": 1}}, "must be"),
        ({"tmp_mib": 0}, "tmp_mib=0"),
        ({"start_timeout_s": 0}, "start_timeout_s=0"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        get_backend("kubernetes", **{"image": "x", "namespace": "nnunet", **options})


def test_what_is_delivered_for_a_cluster_fits_together(tmp_path: Path) -> None:
    """The example's options and template make pods for all steps; the other files are objects that the client's models take."""
    import yaml

    options = json.loads((INCLUDE / "backend_options.json").read_text())
    checked = PodOptions(**{**options, "pod_template_file": str(TEMPLATE), "user": "1000:1000"})
    workspace = Workspace.below("/data/nnunet", input_roots=("/data/incoming",))
    for step in STEPS:
        job = JobDir(Path(workspace.jobs) / make_job_id(step, "x"))
        pod = build_pod(checked, job, make(workspace, step, gpus=1), 1)
        assert pod.spec.containers[0].image == options["image"]
    api = client.ApiClient()
    kinds = {
        "Namespace": k8s.V1Namespace, "ServiceAccount": k8s.V1ServiceAccount, "Role": k8s.V1Role, "RoleBinding": k8s.V1RoleBinding,
        "PersistentVolumeClaim": k8s.V1PersistentVolumeClaim, "NetworkPolicy": k8s.V1NetworkPolicy, "Pod": k8s.V1Pod,
    }  # fmt: skip
    found = [item for path in sorted(INCLUDE.glob("*.yaml")) for item in yaml.safe_load_all(path.read_text())]
    assert {item["kind"] for item in found} == set(kinds)
    for item in found:
        model = api._ApiClient__deserialize(item, kinds[item["kind"]])
        assert api.sanitize_for_serialization(model) == item, "a field that the API does not know"
    claims = {item["metadata"]["name"] for item in found if item["kind"] == "PersistentVolumeClaim"}
    assert {value if isinstance(value, str) else value["claim"] for value in options["volumes"].values()} == claims
    (role,) = (item for item in found if item["kind"] == "Role")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "delete"]}]


def test_a_trigger_carries_the_options(tmp_path: Path) -> None:
    options = pod_options(tmp_path)
    _, arguments = JobTrigger(job="/jobs/x", backend="kubernetes", backend_options=options).serialize()
    stored = json.loads(json.dumps(arguments))
    assert get_backend(stored["backend"], **stored["backend_options"]).name == "kubernetes"


def test_every_option_is_explained() -> None:
    text = (PROJECT / "docs" / "how-to" / "kubernetes.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [item.name for item in fields(PodOptions)]
