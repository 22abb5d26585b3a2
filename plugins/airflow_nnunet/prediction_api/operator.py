"""Runs the one task of a request: asks a predictor server, or runs a job as for any batch if none answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_nnunet.jobs.exceptions import from_job_error
from airflow_nnunet.jobs.outage import patiently
from airflow_nnunet.operators.predict import BatchPredictOperator
from airflow_nnunet.prediction_api.models import ModelFacts, model_facts
from airflow_nnunet.prediction_api.servers import ServerAnswer, ask_servers
from airflow_nnunet.prediction_api.store import StoredRequest, open_request
from airflow_nnunet.prediction_api.tenants import Tenant, load_tenant
from airflow_nnunet.settings.pool_names import PREDICTION_POOL
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.workspace_memory import TaskMemory
from nnunet_jobs.contract.failure import DataError, FailureClass, JobError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.results import PredictResult
from nnunet_jobs.contract.storage.files import read_json, replacing, sha256_file
from nnunet_jobs.contract.storage.marker import open_workspace
from nnunet_jobs.contract.storage.permissions import workspace_umask
from nnunet_jobs.contract.storage.predictions import (
    PREDICTIONS,
    entry,
    read_predictions,
    records_of,
    summarise,
    write_case_record,
    write_predictions,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


class RequestPredictOperator(BatchPredictOperator):
    """Predict the request with the id of the run. Its fields are in the request's folder, never in the run's conf.

    A try that finds the segmentation, or the job of an earlier try, asks no server again, so nothing is predicted
    twice.

    Args:
        kwargs: See :class:`BatchPredictOperator`; ``dataset``, ``cases``, ``output_folder`` and ``model`` come from the
            request.
    """

    default_pool = PREDICTION_POOL

    def __init__(self, *, pool: str = PREDICTION_POOL, **kwargs: Any) -> None:
        kwargs |= {
            "dataset": "{{ params.dataset }}",
            "model": "{{ params.model }}",
            "cases": "{{ run_id }}",
            "output_folder": "{{ run_id }}",
        }
        super().__init__(pool=pool, **kwargs)

    def execute(self, context: Context) -> Any:
        """Return an existing result, ask a server, or run a job as :class:`BatchPredictOperator` does."""
        ti = context["ti"]
        try:
            tenant = load_tenant(self.team)
            # This comes first, because a request is not unknown if only its share is not mounted.
            memory, limit_s = TaskMemory.of_this_process(), resolve_config(team=self.team).lost_after
            patiently(lambda: open_workspace(tenant.workspace, memory=memory), log=self.log, limit_s=limit_s)
            stored = open_request(tenant.workspace, ti.run_id)
            self.dataset, self.model = stored.dataset, stored.model
            self.cases = [{"case": stored.id, "images": [str(path) for path in stored.image_paths]}]
            self.output_folder = str(stored.output)
            job = JobDir(f"{tenant.workspace.jobs}/{self._job_id(ti, ti.max_tries)}")
            if not job.path.exists():
                with workspace_umask(tenant.workspace):
                    result = self._finished(stored) or self._asked(tenant, stored)
                if result is not None:
                    return result
        except JobError as error:
            raise from_job_error(error) from error
        return super().execute(context)

    def _finished(self, stored: StoredRequest) -> dict[str, Any] | None:
        """Return the result of an earlier try if it is complete."""
        found = read_predictions(stored.output)
        case = found.get("cases", {}).get(stored.id, {})
        if case.get("status") != "predicted":
            return None
        path = stored.output / case["file"]
        recorded = {_recorded_sha256(record, case["file"]) for record in records_of(stored.output, stored.id)}
        if not path.is_file() or sha256_file(path) not in recorded:
            return None
        return _result(stored, dataset=found["dataset"], model=case["model"], already=True, flagged=bool(case.get("flags")))

    def _asked(self, tenant: Tenant, stored: StoredRequest) -> dict[str, Any] | None:
        """Ask the servers and store the answer in the form of a batch's results; return None if no server has one."""
        if not tenant.servers:
            return None
        facts = model_facts(tenant.workspace, stored.dataset, stored.model)
        self.log.info("asking %d predictor server(s) for %s of %s", len(tenant.servers), facts.model, facts.dataset)
        try:
            answer = ask_servers(tenant.servers, facts, stored.image_paths)
        except DataError as error:
            failed = {"status": "failed", "reason": str(error), "failure_class": str(FailureClass.DATA)}
            _keep(stored, facts, {**failed, "model": facts.model, "model_hash": facts.hash})
            raise
        if answer is None:
            return None
        self.log.info("predictor server %s has answered", answer.server)
        _keep_segmentation(stored, facts, answer)
        return _result(stored, dataset=facts.dataset, model=facts.model, already=False, flagged=bool(answer.record.get("flags")))


def _keep_segmentation(stored: StoredRequest, facts: ModelFacts, answer: ServerAnswer) -> None:
    name = f"{stored.id}{facts.file_ending}"
    stored.output.mkdir(exist_ok=True)
    with replacing(stored.output / name) as file:
        file.write(answer.content)
    _keep(stored, facts, {**answer.record, "status": "predicted", "file": name, "files": {name: answer.sha256}})


def _keep(stored: StoredRequest, facts: ModelFacts, record: dict[str, Any]) -> None:
    """Write the record and predictions.json, after the segmentation."""
    written = write_case_record(stored.output, stored.id, record)
    known = entry(written)
    facts_of_all = {
        "dataset": facts.dataset,
        "model": facts.model,
        "model_hash": facts.hash,
        "settings": {},  # those of the server
        "updated": written["at"],
    }
    write_predictions(stored.output, summarise(facts_of_all, {stored.id: known}, counted=[known]))


def _result(stored: StoredRequest, *, dataset: str, model: str, already: bool, flagged: bool) -> dict[str, Any]:
    """Return the task's result in the form of step ``predict``."""
    return PredictResult(
        dataset=dataset,
        model=model,
        output=str(stored.output),
        predictions=str(stored.output / PREDICTIONS),
        predicted=int(not already),
        already_done=int(already),
        failed=[],
        not_predicted=[],
        empty=False,
        flagged=int(flagged),
        dice=None,
        part=0,
        parts=1,
    ).to_json()


def _recorded_sha256(record: Path, name: str) -> str | None:
    try:
        return str(read_json(record)["files"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return None
