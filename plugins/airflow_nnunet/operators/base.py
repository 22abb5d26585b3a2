"""Base of the five operators: builds the job's specification, submits it, waits without a worker slot, returns the
result.

The job outlives the task. When a worker, triggerer, scheduler or API server stops, nothing is lost: the retry computes
the same job id, finds the job and attaches to it again. Only a user's act (mark failed, mark success, clear) or an
execution timeout cancels a job, and a cancelled training has saved a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.exceptions import TaskDeferralTimeout

from airflow_nnunet.backends import Backend, JobStatus, read_status
from airflow_nnunet.jobs.exceptions import from_job_error, to_airflow_error
from airflow_nnunet.jobs.links import JobFolderLink, JobLink, JobLogLink, job_url
from airflow_nnunet.jobs.log import log_size
from airflow_nnunet.jobs.outage import patiently
from airflow_nnunet.jobs.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY, NnunetRetryPolicy
from airflow_nnunet.jobs.task_state import JOB_XCOM
from airflow_nnunet.operators.mapping import CheckedPartial
from airflow_nnunet.operators.rendering import RenderingMixin
from airflow_nnunet.operators.results import ResultMixin
from airflow_nnunet.operators.specification import SpecificationMixin
from airflow_nnunet.operators.waiting import WaitingOperator
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from airflow_nnunet.settings.workspace_memory import TaskMemory
from nnunet_jobs.contract.failure import ConfigError, JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.marker import open_workspace
from nnunet_jobs.contract.storage.permissions import explain_permission_error

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

_LOG_TAIL_BYTES = 4096
DEFAULT_RETRY_POLICY = NnunetRetryPolicy()


class NnunetOperator(SpecificationMixin, ResultMixin, RenderingMixin, WaitingOperator):
    """Base of the five operators.

    Args:
        nnunet_conn_id: Connection of type ``nnunet`` whose extra overrides options of section [nnunet].
        team: Name of a file in ``include/teams``. The team's workspace and roots are used and cannot be left, and its
            pool, queue and priority are used if the task names none. This is not a template, because a person who
            triggers a run must not choose whose data it sees.
        deferrable: True waits in the triggerer and holds no worker slot; False polls in the worker.
        device: ``auto``, ``cuda`` (requires a GPU) or ``cpu``.
        num_gpus: Number of GPUs to lease.
        gpu_memory_mib: Memory to reserve on each GPU in MiB; None reserves whole GPUs.
        cpus: Number of cores to use; 0 means an even share.
        memory_mib: Limit of the job's memory in MiB.
        shm_mib: Shared memory in MiB of a job in a container.
        hang_s: Least number of seconds without progress after which the job counts as hanging.
        grace_s: Seconds that a cancelled job has to save its work.
        retries: Number of retries; by default three retries for failures that another try can fix.
        retry_policy: Decides by the failure's class whether and when to retry; see :class:`NnunetRetryPolicy`.
        retry_delay: Wait before a retry that the scheduler makes without the policy, such as after the end of a worker.
        kwargs: Everything that any operator takes. ``execution_timeout`` cancels the job; ``multiple_outputs=True``
            also stores each field of the result as an XCom of its own, so that ``train.output["model"]`` works.

    Raises:
        ConfigError: A field that is not a template is wrong; shown as the DAG's import error.
    """

    default_pool: ClassVar[str | None] = None
    operator_extra_links: tuple[JobLink, ...] = (JobLogLink(), JobFolderLink())
    ui_color = "#e8f0fe"
    ui_fgcolor = "#1a3a6b"

    def __init__(
        self,
        *,
        nnunet_conn_id: str | XComArg | None = None,
        team: str | None = None,
        deferrable: bool = True,
        device: str | XComArg = "auto",
        num_gpus: int | str | XComArg = 0,
        gpu_memory_mib: int | str | XComArg | None = None,
        cpus: int | str | XComArg = 0,
        memory_mib: int | str | XComArg | None = None,
        shm_mib: int | str | XComArg = 8192,
        hang_s: float | str | XComArg = 300.0,
        grace_s: float | str | XComArg = 120.0,
        retries: int = DEFAULT_RETRIES,
        retry_policy: Any = DEFAULT_RETRY_POLICY,
        retry_delay: timedelta | float = DEFAULT_RETRY_DELAY,
        **kwargs: Any,
    ) -> None:
        if team:
            given = {**kwargs.get("default_args", {}), **kwargs, "nnunet_conn_id": nnunet_conn_id}
            kwargs |= load_teams().task_fields(team, given, common_pool=self.default_pool)
        super().__init__(retries=retries, retry_policy=retry_policy, retry_delay=retry_delay, **kwargs)
        self.nnunet_conn_id: Any = nnunet_conn_id  # a name by the time that it is read
        self.team = team
        self.deferrable = deferrable
        self.device = device
        self.num_gpus = num_gpus
        self.gpu_memory_mib = gpu_memory_mib
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.shm_mib = shm_mib
        self.hang_s = hang_s
        self.grace_s = grace_s

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Prepare a mapped operator, and keep the pool of the operator or its team, which Airflow drops for mapped
        tasks.

        Raises:
            ConfigError: A field that is not a template is wrong, here or in ``expand``; shown as the DAG's import
                error.
        """
        partial = super().partial(**kwargs)
        # Airflow copies the default of ``outlets``, and a mapped task cannot start if it is None.
        partial.kwargs["outlets"] = as_list(partial.kwargs.get("outlets"))
        defaults = [getattr(partial.kwargs.get(name), "default_args", None) or {} for name in ("dag", "task_group")]
        given: dict[str, Any] = {**defaults[0], **defaults[1], **kwargs.get("default_args", {}), **kwargs}
        if team := given.get("team"):
            partial.kwargs.update(load_teams().task_fields(team, given, common_pool=cls.default_pool))
        if cls.default_pool:
            partial.kwargs.setdefault("pool", cls.default_pool)
        return CheckedPartial.of(partial)

    # --- running it ---------------------------------------------------------------------------------------------
    def execute(self, context: Context) -> Any:
        """Submit the job or find it, wait, and return the step's result."""
        self._stopping = False
        try:
            config = resolve_config(self.nnunet_conn_id, team=self.team)
            spec = self.job_spec(context, config)
            backend = config.make_backend()
            job = patiently(lambda: self._submit(context, config, spec, backend), log=self.log, limit_s=config.lost_after)
        except JobError as error:
            raise from_job_error(error) from error
        except PermissionError as error:
            raise from_job_error(ConfigError(where="[nnunet]", field="jobs", problem=explain_permission_error(error))) from error
        self._publish(context, job)
        status = self._look(config, job)
        if not status.final:
            self.log.info("job %s, attempt %s, is %s; its files are in %s", job.job_id, status.attempt, status.phase, job.path)
            status = self._wait_for(context, config, job)
        return self._outcome(context, job, status)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Resume after the trigger's event: return the step's result or raise by the failure's class."""
        self._stopping = False
        job = JobDir(event["job"])
        self.job_id = job.job_id
        config = resolve_config(self.nnunet_conn_id, team=self.team)
        status = self._look(config, job)
        if not status.final:  # another attempt was started in the meantime
            status = self._wait_for(context, config, job)
        return self._outcome(context, job, status)

    def execute_after_stop(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Start the next attempt after a cancelled one has ended."""
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral. An execution timeout that has passed cancels the job."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            config = resolve_config(self.nnunet_conn_id, team=self.team)
            job = JobDir(f"{config.workspace.jobs}/{self._job_id(context['ti'], context['ti'].max_tries)}")
            self._cancel(config.make_backend(), job, "execution timeout")
            raise

    def result_ready(self, context: Context, result: dict[str, Any]) -> None:
        """Use a result before it becomes the XCom, for instance to send asset events. Subclasses may override this.

        Args:
            context: Context of the task.
            result: JSON object of the step's result, as the class in :mod:`nnunet_jobs.contract.steps.results` reads it.
        """

    # --- private ------------------------------------------------------------------------------------------------
    def _submit(self, context: Context, config: NnunetConfig, spec: JobSpec, backend: Backend) -> JobDir:
        """Submit the job or find it, after jobs of earlier tries and from before a clear have stopped."""
        open_workspace(spec.workspace, memory=TaskMemory.of_this_process())
        self._cancel_superseded(context, spec, backend)
        job = JobDir(f"{spec.workspace.jobs}/{spec.job_id}")
        if job.path.exists() and job.cancel_requested() and not read_status(job).final:
            self.log.info("an earlier try of %s is still saving its work; the next one starts when it has ended", job.job_id)
            self._wait(context, config, job, then="execute_after_stop")
        self._log_from = log_size(job)  # the log of an earlier try has the lines before this
        return backend.submit(spec)

    def _look(self, config: NnunetConfig, job: JobDir) -> JobStatus:
        """Return the job's status, after a wait if its storage does not answer.

        Raises:
            JobLost: The storage did not answer for longer than ``lost_after``, or the job's folder was removed.
        """
        try:
            return patiently(lambda: read_status(job), log=self.log, limit_s=config.lost_after, job=job)
        except JobError as error:
            raise from_job_error(error) from error

    def _wait_for(self, context: Context, config: NnunetConfig, job: JobDir) -> JobStatus:
        """Wait for the end of the job and return its status. A task that defers does not return from here."""
        try:
            self._wait(context, config, job, then="execute_complete")
        except JobError as error:
            raise from_job_error(error) from error
        return self._look(config, job)

    def _cancel_superseded(self, context: Context, spec: JobSpec, backend: Backend) -> None:
        """Stop a job that was started before a clear, in case no process noticed the clear."""
        ti = context["ti"]
        for clears in range(ti.max_tries):
            job = JobDir(f"{spec.workspace.jobs}/{self._job_id(ti, clears)}")
            if job.path.exists() and not job.cancel_requested():
                self._cancel(backend, job, "the task was cleared")

    def _publish(self, context: Context, job: JobDir) -> None:
        """Record the job for the links and the API server while it runs."""
        self.job_id = job.job_id
        ti = context["ti"]
        ti.xcom_push(key=JOB_XCOM, value={"job_id": job.job_id, "path": str(job.path)})
        for link in self.operator_extra_links:
            ti.xcom_push(key=link.xcom_key, value=job_url(job.job_id, link.page))

    def _outcome(self, context: Context, job: JobDir, status: JobStatus) -> dict[str, Any]:
        if status.failure is not None:
            if status.failure.failure_class.retryable:  # the exceptions of the others say everything
                self._show_log_tail(job)
            raise to_airflow_error(status.failure, where=str(job.path))
        result = status.unwrap()
        try:
            self.result_ready(context, result)
        except ConfigError as error:  # a result that lacks a key lacks it at the next try too
            raise from_job_error(error) from error
        return result

    def _show_log_tail(self, job: JobDir) -> None:
        try:
            size = job.log.stat().st_size if job.log.exists() else 0
            text = job.read_log(max(0, size - _LOG_TAIL_BYTES), _LOG_TAIL_BYTES)[0].decode(errors="replace")
        except OSError as error:
            self.log.warning("the job's log cannot be read now: %s", error)
            return
        self.log.error("the job's log ends with:\n%s", text.strip())


def as_list(value: Any) -> list[Any]:
    """Return outlets as a list, for one asset or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]
