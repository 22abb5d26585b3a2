"""Builds the pod of one attempt with KubernetesPodOperator, from the site's template and the job's specification."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_nnunet.backends.job_container import groups_of, job_environment, job_user
from airflow_nnunet.backends.kubernetes.options import PodOptions
from airflow_nnunet.backends.kubernetes.pod_security import check_security
from airflow_nnunet.backends.mounts import Mode, Mount, mounts_for
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.files import content_hash

if TYPE_CHECKING:
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

CONTAINER = "job"
APP = "nnunet-job"
JOB_LABEL, ATTEMPT_LABEL, FOLDER_LABEL = "nnunet-job-id", "nnunet-attempt", "nnunet-jobs-folder"
JOB_ANNOTATION = "nnunet-job-id"  # the whole id; a label has at most 63 characters
# Names of people are left out, because the cluster need not know who triggered a run.
_LABELS_OF_AIRFLOW = ("dag_id", "run_id", "task_id", "map_index", "team")
_NAME_LENGTH = 40
# kubelet kills this long after the runner would have done so itself, so that the runner can write its outcome.
_GRACE_MARGIN_S = 30


def pod_name(job: JobDir, attempt: int) -> str:
    """Return the name of an attempt's pod, with a hash of the folder, as two Airflows may share a namespace."""
    return f"{job.job_id[:_NAME_LENGTH].rstrip('-')}-{content_hash([str(job.path)], length=8)}-{attempt}"


def job_labels(job: JobDir) -> dict[str, str]:
    """Return the labels that all pods of a job have, and no others."""
    from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value

    return {
        "app.kubernetes.io/name": APP,
        JOB_LABEL: make_safe_label_value(job.job_id),
        FOLDER_LABEL: folder_label(job.path.parent),
    }


def folder_label(jobs: Path) -> str:
    """Return the label that the pods of all jobs of a workspace have."""
    return content_hash([str(jobs)])


def grace_period_s(grace_s: float) -> int:
    """Return the seconds between the cluster's SIGTERM and SIGKILL, more than the runner needs to end its step."""
    return math.ceil(grace_s) + _GRACE_MARGIN_S


def build_pod(options: PodOptions, job: JobDir, spec: JobSpec, attempt: int) -> k8s.V1Pod:
    """Build and check the pod. Templates and pod mutation hooks that weaken its security are refused.

    Raises:
        ConfigError: A folder is on no claim, the user would be root, a GPU is wanted but the options say that there is
            none, or the template is too permissive.
    """
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value

    template: k8s.V1Pod | None = None
    if options.pod_template_file:
        template = _template(options.pod_template_file)
    uid, gid = job_user(options.user, job)
    gpus = _gpus(options, spec)
    volumes, mounts = _volumes(options, spec)
    told = {name: make_safe_label_value(spec.labels[name]) for name in _LABELS_OF_AIRFLOW if name in spec.labels}
    operator = KubernetesPodOperator(
        task_id=APP,
        name=pod_name(job, attempt),
        random_name_suffix=False,
        namespace=options.namespace,
        image=options.image,
        cmds=[options.python],
        arguments=["-m", options.module, "run", str(job.path), "--attempt", str(attempt), "--own-log"],
        env_vars=job_environment(gpus=gpus > 0, more=options.environment),
        labels={**told, **job_labels(job), ATTEMPT_LABEL: str(attempt), "nnunet-step": spec.step},
        annotations={JOB_ANNOTATION: job.job_id},
        pod_template_file=options.pod_template_file,
        base_container_name=CONTAINER,
        container_resources=_resources(options, spec, gpus, template),
        volumes=volumes,
        volume_mounts=mounts,
        security_context=_pod_security((uid, gid), groups_of(spec), template),
        container_security_context=_container_security(template),
        automount_service_account_token=False,
        termination_grace_period=grace_period_s(spec.resources.grace_s),
        # With this, the pod's status has early messages of the runner, such as a missing package.
        termination_message_policy="FallbackToLogsOnError",
    )
    # A dry run needs no cluster. With a namespace it builds the same pod.
    pod = operator.build_pod_request_obj(dry_run=True)
    check_security(pod, CONTAINER)
    return pod


def _template(path: str) -> k8s.V1Pod:
    import yaml
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    if not os.path.isfile(path):
        raise ConfigError(where="backend_options:", field="pod_template_file", value=path, problem="no such file on this worker")
    try:
        template: k8s.V1Pod = PodGenerator.deserialize_model_file(path)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            where="backend_options:", field="pod_template_file", value=path, problem=f"not a pod: {' '.join(str(error).split())}"
        ) from error
    if template is None or template.spec is None or not template.spec.containers:
        raise ConfigError(
            where="backend_options:",
            field="pod_template_file",
            value=path,
            problem="not a pod: it needs spec.containers with one container",
        )
    return template


def _gpus(options: PodOptions, spec: JobSpec) -> int:
    wanted = spec.resources
    if wanted.device == "cpu" or not wanted.gpus:
        return 0
    if not options.gpu_resource:
        if wanted.device == "cuda":
            raise ConfigError(
                field="device",
                value="cuda",
                problem="backend_options says that this cluster has no GPUs",
                fix="set gpu_resource to its name for them",
            )
        return 0
    return wanted.gpus


def _resources(options: PodOptions, spec: JobSpec, gpus: int, template: k8s.V1Pod | None) -> k8s.V1ResourceRequirements:
    """Return the job's cores, memory and GPUs, or those of the template if the job names none."""
    from kubernetes.client import models as k8s

    base = _first_container(template)
    found = base.resources if base is not None and base.resources is not None else k8s.V1ResourceRequirements()
    requests, limits = dict(found.requests or {}), dict(found.limits or {})
    for amounts in (requests, limits):
        if spec.resources.cpus:
            amounts["cpu"] = str(spec.resources.cpus)
        if spec.resources.memory_mib:
            amounts["memory"] = f"{spec.resources.memory_mib}Mi"
        if options.gpu_resource:
            amounts.pop(options.gpu_resource, None)
        if gpus:
            amounts[options.gpu_resource] = str(gpus)
    return k8s.V1ResourceRequirements(requests=requests, limits=limits, claims=found.claims)


def _volumes(options: PodOptions, spec: JobSpec) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    """Return volumes for the step's folders, and the pod's own: /tmp, shared memory, the lease ledger."""
    from kubernetes.client import models as k8s

    own = {
        "nnunet-tmp": ("/tmp", k8s.V1EmptyDirVolumeSource(size_limit=f"{options.tmp_mib}Mi")),  # noqa: S108
        "nnunet-shm": ("/dev/shm", k8s.V1EmptyDirVolumeSource(medium="Memory", size_limit=f"{spec.resources.shm_mib}Mi")),  # noqa: S108
        # The cluster gives the pod GPUs of its own, so the pod has a lease ledger of its own.
        "nnunet-leases": (spec.workspace.leases, k8s.V1EmptyDirVolumeSource(size_limit="16Mi")),
    }
    volumes = [k8s.V1Volume(name=name, empty_dir=source) for name, (_, source) in own.items()]
    mounts = [k8s.V1VolumeMount(name=name, mount_path=path) for name, (path, _) in own.items()]
    names: dict[str, str] = {}
    for mount in mounts_for(spec):
        if mount.mode is Mode.HIDDEN:
            name = f"nnunet-hidden-{mount.field}"
            volumes.append(k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource(size_limit="1Mi")))
            mounts.append(k8s.V1VolumeMount(name=name, mount_path=mount.path, read_only=True))
            continue
        claim, inside = _holder(options, mount)
        if claim not in names:
            names[claim] = f"nnunet-data-{len(names)}"
            source = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=claim)
            volumes.append(k8s.V1Volume(name=names[claim], persistent_volume_claim=source))
        mounts.append(
            k8s.V1VolumeMount(name=names[claim], mount_path=mount.path, sub_path=inside or None, read_only=mount.mode is Mode.READ_ONLY)
        )
    return volumes, mounts


def _holder(options: PodOptions, mount: Mount) -> tuple[str, str]:
    found = options.holder(mount.path)
    if found is None:
        folder = str(Path(mount.path).parent)
        raise ConfigError(
            where="backend_options:",
            field="volumes",
            value=dict(options.volumes),
            problem=f"no claim holds {mount.path} ({mount.field})",
            fix=f'add the claim with that folder, such as {{"{folder}": "claim-name"}}',
        )
    return found[0].claim, found[1]


def _pod_security(user: tuple[int, int], groups: list[int], template: k8s.V1Pod | None) -> k8s.V1PodSecurityContext:
    """Run as the owner of the data. There is no fsGroup, because kubelet would give it access to the whole volume."""
    from kubernetes.client import models as k8s

    ours = k8s.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=user[0],
        run_as_group=user[1],
        supplemental_groups=groups or None,
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )
    base = template.spec.security_context if template is not None and template.spec is not None else None
    return _merged(base, ours)


def _container_security(template: k8s.V1Pod | None) -> k8s.V1SecurityContext:
    from kubernetes.client import models as k8s

    ours = k8s.V1SecurityContext(
        allow_privilege_escalation=False,
        privileged=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )
    base = _first_container(template)
    return _merged(base.security_context if base is not None else None, ours)


def _first_container(template: k8s.V1Pod | None) -> k8s.V1Container | None:
    """Return the container of the template into which the job's container is merged."""
    containers = template.spec.containers if template is not None and template.spec is not None else None
    return containers[0] if containers else None


def _merged(base: Any, ours: Any) -> Any:
    """Return our security context, with options that only the template sets, such as SELinux options."""
    for name in ours.attribute_map if base is not None else ():
        if getattr(ours, name) is None:
            setattr(ours, name, getattr(base, name))
    return ours
