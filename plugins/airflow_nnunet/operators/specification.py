"""What an operator asks for: checks its arguments and builds the job's specification from the rendered fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_nnunet.operators.fields import build_params, build_resources, check_absolute, check_constants, check_resources, is_template
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.python_classes import check_class
from nnunet_jobs.contract.job.spec import JobSpec, Resources, make_job_id
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.steps.params import HELD_OUT

if TYPE_CHECKING:
    from airflow.sdk import Context

_NO_OWNER = "airflow"  # Airflow's default when the DAG's author names no owner
_RESOURCE_FIELDS = ("device", "num_gpus", "gpu_memory_mib", "cpus", "memory_mib", "shm_mib", "hang_s", "grace_s")


def templated(params_class: type[StepParams], renamed: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the template fields of an operator: the step's parameters, the resources and the connection."""
    names = [(renamed or {}).get(item.name, item.name) for item in fields(params_class)]
    return (*names, *_RESOURCE_FIELDS, "nnunet_conn_id")


class SpecificationMixin:
    """The part of an operator that says what its job is."""

    params_class: ClassVar[type[StepParams]]
    renamed: ClassVar[Mapping[str, str]] = {}
    judged_together: ClassVar[tuple[str, ...]] = ()
    absolute_paths: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments that are paths."""
    python_classes: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments that name a Python class of nnU-Net or of ``trainer_paths``."""
    team: str | None
    owner: str

    @classmethod
    def judge(cls, given: Mapping[str, Any]) -> None:
        """Check arguments that are known when the DAG is parsed.

        Args:
            given: Some or all of the operator's arguments, by name; templates and XComs are not checked.

        Raises:
            ConfigError: One of them is wrong; the message names it, its value and the fix.
        """
        names = {item.name: cls.renamed.get(item.name, item.name) for item in fields(cls.params_class)}
        check_constants(cls.params_class, {name: given[own] for name, own in names.items() if own in given}, together=cls.judged_together)
        check_resources({name: given[name] for name in _RESOURCE_FIELDS if name in given})
        for name in cls.absolute_paths:
            if name in given:
                check_absolute(name, given[name], words=HELD_OUT if name == "cases" else ())
        for kind in cls.python_classes:
            if isinstance(value := given.get(kind), str) and not is_template(value):
                check_class(kind, value, team=given.get("team"), conn_id=given.get("nnunet_conn_id"))

    def check_fields(self) -> None:
        """Check the values known at parse time; called at the end of each operator's ``__init__``."""
        own = [self.renamed.get(item.name, item.name) for item in fields(self.params_class)]
        self.judge({name: getattr(self, name) for name in (*own, *_RESOURCE_FIELDS, "team", "nnunet_conn_id")})

    def step_params(self) -> StepParams:
        """Return the step's parameters from the rendered fields.

        Raises:
            ConfigError: A field is wrong.
        """
        return build_params(self.params_class, self._values())

    def resource_request(self) -> Resources:
        """Return the job's resources from the rendered fields."""
        return build_resources({name: getattr(self, name) for name in _RESOURCE_FIELDS})

    def job_spec(self, context: Context, config: NnunetConfig) -> JobSpec:
        """Return the job's specification. All tries have the same id, and a cleared task gets another one."""
        ti = context["ti"]
        return JobSpec(
            job_id=self._job_id(ti, ti.max_tries),
            step=self.params_class.step,
            params=self.step_params().to_json(),
            workspace=config.workspace,
            resources=self.resource_request(),
            labels={"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": str(_map_index(ti))}
            | _people(self, context)
            | ({"team": self.team} if self.team else {}),
        )

    def _values(self) -> dict[str, Any]:
        return {item.name: getattr(self, self.renamed.get(item.name, item.name)) for item in fields(self.params_class)}

    def _job_id(self, ti: Any, clears: int) -> str:
        # Only a clear raises max_tries, so it counts the clears. A try number in the id would prevent attaching to the
        # job again.
        return make_job_id(self.params_class.step, ti.dag_id, ti.run_id, ti.task_id, _map_index(ti), clears)


def _people(operator: SpecificationMixin, context: Context) -> dict[str, str]:
    """Return for a dataset's history the person who triggered the run and the task's owner, if they are known."""
    found = {"triggered_by": getattr(context.get("dag_run"), "triggering_user_name", None)}
    found["owner"] = operator.owner if operator.owner != _NO_OWNER else None
    return {name: value for name, value in found.items() if value}


def _map_index(ti: Any) -> int:
    return -1 if ti.map_index is None else int(ti.map_index)
