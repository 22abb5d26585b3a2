"""The Kubernetes backend: what an attempt's pod adds to what the job's files say."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_nnunet.backends.base import Backend, JobStatus, Watch, read_status
from airflow_nnunet.backends.kubernetes.cluster import Cluster, Refused, Unreachable
from airflow_nnunet.backends.kubernetes.options import PodOptions
from airflow_nnunet.backends.kubernetes.pod import build_pod, grace_period_s, job_user, pod_name
from airflow_nnunet.backends.kubernetes.sight import Sight, Stage, look_at
from airflow_nnunet.backends.mounts import Mode, mounts_for
from nnunet_jobs.contract.failure import ConfigError, Failure, FailureClass, Lost
from nnunet_jobs.contract.files import PRIVATE
from nnunet_jobs.contract.jobdir import JobDir, Phase
from nnunet_jobs.contract.spec import JobSpec
from nnunet_jobs.contract.workspace import Workspace

log = logging.getLogger(__name__)

# A pod ends a moment after its runner wrote the outcome; its exit code is worth so much waiting.
_SETTLE_S = 20.0
# Shared storage shows a file on another host after a while; so long an end without an outcome is not believed.
_FILES_S = 20.0
_BEAT_S = 3.0  # a living runner beats in that time
_CANNOT_ASK = (Unreachable, Refused, ConfigError)


class KubernetesBackend(Backend):
    """One pod for each attempt of a job, named after both, so that whoever submits, watches or retries finds the same one.

    While the runner's heartbeat moves, the cluster is not asked: hundreds of running jobs cost its API server nothing, and its
    outage costs no job. The pod is looked at while it waits for a node, when the heart stops, and at the end.

    Args:
        options: see :class:`PodOptions`.
    """

    name = "kubernetes"
    runs_here = False
    look_again_s = 1.0

    def __init__(self, **options: Any) -> None:
        self.options = PodOptions(**options)
        self.cluster = Cluster(self.options)
        self.files_s = _FILES_S
        self._since: dict[tuple[str, int, str], float] = {}
        self._settled: set[tuple[str, int]] = set()

    def submit(self, spec: JobSpec) -> JobDir:
        """See :meth:`Backend.submit`. A pod's cores are its own, so they are not shared out among the CPU slots of a host."""
        job = super().submit(replace(spec, workspace=replace(spec.workspace, cpu_slots=1)))
        if job.result() is not None:
            self._settle(job, read_status(job))
        return job

    def start(self, job: JobDir, spec: JobSpec, attempt: int) -> None:
        """Create the pod. It may wait for a node for long, so nobody waits here: the pod itself is the record of the attempt."""
        try:
            self.cluster.delete_earlier(job, attempt)
            pod = build_pod(self.options, job, spec, attempt)
            self._make_folders(job, spec)
            self.cluster.create(pod)
        except ConfigError as error:
            self._declare(job, attempt, FailureClass.CONFIG, str(error))
        except Refused as error:
            self._declare(job, attempt, FailureClass.LOST if error.transient else FailureClass.CONFIG, f"no pod was created: {error}")
        except Unreachable as error:
            self._declare(job, attempt, FailureClass.LOST, f"whether a pod was created is not known: {error}")

    def alive(self, job: JobDir) -> bool:
        """See :meth:`Backend.alive`.

        Raises:
            Lost: the cluster does not answer and the runner does not beat: nothing can be said now.
        """
        state = job.state()
        if state.attempt == 0 or state.phase.final:
            return False
        try:
            pod = self.cluster.read(job, state.attempt)
        except _CANNOT_ASK as error:
            if state.pid and _beats(job):
                return True
            raise Lost(f"{pod_name(job, state.attempt)}: {error}") from error
        return pod is not None and look_at(pod).stage.alive

    def status(self, job: JobDir, watch: Watch) -> JobStatus:
        """See :meth:`Backend.status`."""
        status = read_status(job)
        if status.attempt == 0:
            return status
        if status.final:
            return self._settle(job, status)
        begun = job.state().pid > 0
        silent = watch.silent_s(job, status.attempt)
        if begun and silent == 0:
            return status
        try:
            self._judge(job, status.attempt, begun=begun, lost=silent >= watch.lost_after_s, silent=silent)
        except _CANNOT_ASK as error:
            job.say(status.attempt, f"the cluster cannot be asked: {error}")
            if begun and silent >= watch.lost_after_s:
                message = f"no heartbeat of the runner for {silent:.0f} s, and the cluster cannot be asked: {error}"
                self._declare(job, status.attempt, FailureClass.LOST, message)
        return read_status(job)

    def cancel(self, job: JobDir, reason: str) -> None:
        """Ask the runner to save and stop, and the cluster to see to it: SIGTERM now, SIGKILL after the grace period.

        A pod that still waits for a node has no runner to ask and is taken back.
        """
        super().cancel(job, reason)
        try:
            self._take_back(job, job.state().attempt, reason)
        except _CANNOT_ASK as error:
            log.warning("%s is not deleted, but its runner will see the wish: %s", pod_name(job, job.state().attempt), error)

    def examine(self, workspace: Workspace) -> Iterator[tuple[bool, str]]:
        """See :meth:`Backend.examine`."""
        from airflow_nnunet.backends.kubernetes.examine import examine

        return examine(self.options, self.cluster, workspace)

    # --- private ------------------------------------------------------------------------------------------------
    def _judge(self, job: JobDir, attempt: int, *, begun: bool, lost: bool, silent: float) -> None:
        """Look at the pod of an attempt that shows no sign of life; record the attempt's end if that is what it means.

        Raises:
            Unreachable, Refused, ConfigError: the cluster cannot be asked.
        """
        pod = self.cluster.read(job, attempt)
        reason = job.cancel_requested()
        if pod is None:
            if reason is not None and not begun:
                self._declare(job, attempt, FailureClass.INTERRUPTED, f"cancelled: {reason}", cancelled=True)
            elif self._for(job, attempt, "gone") >= self.files_s:
                message = f"pod {pod_name(job, attempt)} is gone: deleted by somebody, or its node was drained or is lost"
                self._declare(job, attempt, FailureClass.LOST, message)
            return
        sight = look_at(pod)
        if reason is not None and pod.metadata.deletion_timestamp is None and sight.stage.alive:
            self._take_back(job, attempt, reason)
        elif sight.stage is Stage.ENDED:
            told = sight.exit_code in (0, 1)  # the runner's codes for an outcome that it wrote
            if not told or self._for(job, attempt, "ended") >= self.files_s:
                self._end(job, attempt, sight, sight.message)
        elif sight.stage is Stage.DOOMED:
            self._end(job, attempt, sight, f"the pod cannot start: {sight.message}")
        elif not begun:
            job.say(attempt, sight.message or "its runner starts")
            limit = self.options.schedule_timeout_s if sight.stage is Stage.UNSCHEDULED else self.options.start_timeout_s
            if limit and (waited := self._for(job, attempt, str(sight.stage))) >= limit:
                hint = "; does it see the job's folder under the same path?" if sight.stage is Stage.RUNNING else ""
                self._end(job, attempt, sight, f"no runner after {waited:.0f} s in a pod that is {sight.stage}: {sight.message}{hint}")
        elif lost:
            trouble = f"; its pod on {pod.spec.node_name}: {sight.message}" if sight.message else f"; its pod runs on {pod.spec.node_name}"
            self._end(job, attempt, sight, f"no heartbeat of the runner for {silent:.0f} s{trouble}")

    def _end(self, job: JobDir, attempt: int, sight: Sight, message: str) -> None:
        """Record an attempt's end as the pod tells it, then let go of what the pod still holds.

        Raises:
            Unreachable, Refused.
        """
        self._declare(job, attempt, sight.failure_class, message, exit_code=sight.exit_code, details={"container": dict(sight.facts)})
        if not (self.options.keep_pods and sight.stage is Stage.ENDED):
            self.cluster.delete(job, attempt)

    def _declare(self, job: JobDir, attempt: int, failure_class: FailureClass, message: str, **more: Any) -> None:
        """Record our verdict, unless the runner had the last word, or a cancel explains the end."""
        reason = job.cancel_requested()
        if reason is not None and failure_class is FailureClass.LOST:
            failure_class, message, more = FailureClass.INTERRUPTED, f"cancelled: {reason} ({message})", {**more, "cancelled": True}
        job.declare_lost(attempt, Failure(failure_class=failure_class, message=message, attempt=attempt, **more))

    def _take_back(self, job: JobDir, attempt: int, reason: str) -> None:
        """Delete the pod of a cancelled attempt with time for saving; one without a runner has ended by that.

        Raises:
            Unreachable, Refused.
        """
        state = job.state()
        if attempt == 0 or state.phase.final:
            return
        self.cluster.delete(job, attempt, grace_s=grace_period_s(job.spec()))
        if not state.pid:
            # A runner that begins at this moment finds its attempt over and leaves.
            self._declare(job, attempt, FailureClass.INTERRUPTED, f"cancelled: {reason}", cancelled=True)

    def _settle(self, job: JobDir, status: JobStatus) -> JobStatus:
        """After the outcome: put the pod's part on record and remove it. Until its exit code is known the job is not reported as over."""
        key = (str(job.path), status.attempt)
        if key in self._settled:
            return status
        try:
            pod = self.cluster.read(job, status.attempt)
            if pod is not None:
                sight = look_at(pod)
                if sight.stage.alive and self._for(job, status.attempt, "settling") < _SETTLE_S:
                    return JobStatus(attempt=status.attempt, phase=Phase.RUNNING, message="its pod is ending")
                job.note_container(status.attempt, sight.facts)
                if not self.options.keep_pods:
                    self.cluster.delete(job, status.attempt)
        except _CANNOT_ASK as error:  # the outcome counts; the pod's part in it is not worth a job that never ends
            log.warning("pod %s is left behind: %s", pod_name(job, status.attempt), error)
        self._settled.add(key)
        return read_status(job)

    def _for(self, job: JobDir, attempt: int, what: str) -> float:
        """Seconds since this watcher first saw that, by its own monotonic clock."""
        now = time.monotonic()
        return now - self._since.setdefault((str(job.path), attempt, what), now)

    def _make_folders(self, job: JobDir, spec: JobSpec) -> None:
        """Folders that the pod will mount: kubelet would make missing ones as root's. Where we are root, they become the job's user's."""
        uid, gid = job_user(self.options, job)
        for mount in mounts_for(spec):
            path = Path(mount.path)
            if mount.mode is Mode.HIDDEN or path.exists():
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(exist_ok=True, mode=PRIVATE | 0o100 if mount.field == "private" else 0o777)
                _give(path, uid, gid)
            except OSError as error:
                raise ConfigError(f"[nnunet] {mount.field}: {path} is missing and cannot be made: {error.strerror}") from error
        for path in (job.path, *job.path.iterdir()):
            _give(path, uid, gid)


def _give(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def _beats(job: JobDir) -> bool:
    """Whether the runner's heartbeat moves within a few seconds."""
    before, until = job.beat(), time.monotonic() + _BEAT_S
    while job.beat() == before and time.monotonic() < until:
        time.sleep(0.1)
    return job.beat() != before
