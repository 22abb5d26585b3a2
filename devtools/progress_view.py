"""Shows a run's progress on a terminal: changed states of tasks, and new lines of each running job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from airflow_nnunet.jobs.progress import ProgressLines
from airflow_nnunet.prediction_api.rest_client import AirflowClient
from nnunet_jobs.contract.job.folder import JobDir

_QUIET = frozenset({None, "scheduled", "queued", "none", "removed"})
_LOG_LINES = 25


class ProgressView:
    """Prints what is new since the last call of :meth:`show`."""

    def __init__(self, client: AirflowClient, dag_id: str, run_id: str, *, jobs: Path) -> None:
        self._client = client
        self._dag_id = dag_id
        self._run_id = run_id
        self._jobs = jobs
        self._states: dict[str, str] = {}
        self._lines: dict[str, ProgressLines] = {}
        self._began = time.monotonic()

    def show(self) -> None:
        """Print changed task states, and new progress of this run's jobs."""
        for item in self._client.task_instances(self._dag_id, self._run_id):
            name, state = _name(item), item["state"]
            shown = "running" if state == "deferred" else state
            if state not in _QUIET and self._states.get(name) != shown:
                self._states[name] = shown
                self._say(name, shown)
        for path in sorted(self._jobs.glob("[a-z]*")) if self._jobs.is_dir() else ():
            if path.name not in self._lines:
                labels = JobDir(path).spec().labels
                if labels.get("run_id") != self._run_id:
                    continue
                self._lines[path.name] = ProgressLines(JobDir(path))
            for line in self._lines[path.name].poll(final=JobDir(path).state().phase.final):
                self._say(self._job_name(path), line)

    def failures(self) -> str:
        """Return the ends of the logs of all failed tasks."""
        parts = []
        for item in self._client.task_instances(self._dag_id, self._run_id):
            if item["state"] == "failed":
                where = {"map_index": item["map_index"], "attempt": max(1, item["try_number"])}
                log = self._client.log(self._dag_id, self._run_id, item["task_id"], **where)
                parts.append(f"--- {_name(item)}\n" + "\n".join(log.splitlines()[-_LOG_LINES:]))
        return "\n".join(parts)

    def _job_name(self, path: Path) -> str:
        spec = JobDir(path).spec()
        fold = f" {spec.params['configuration']} / fold {spec.params['fold']}" if spec.step == "train" else ""
        return f"{spec.labels['task_id']}{fold}"

    def _say(self, name: str, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {name:<28} {text}", flush=True)


def _name(item: dict[str, Any]) -> str:
    shown = item.get("rendered_map_index") or (item["map_index"] if item["map_index"] >= 0 else "")
    return f"{item['task_id']} {shown}".strip()
