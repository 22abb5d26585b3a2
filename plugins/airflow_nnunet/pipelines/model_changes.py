"""Changes the champion of a dataset for a person who triggers a run: what ``airflow nnunet model`` does at a terminal."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_nnunet.jobs.assets import champion_changed
from airflow_nnunet.jobs.exceptions import JobBug, from_job_error
from airflow_nnunet.jobs.jobs_command import run_jobs_command
from airflow_nnunet.jobs.outage import patiently
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.workspace_memory import TaskMemory
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError, JobError
from nnunet_jobs.contract.storage.marker import open_workspace
from nnunet_jobs.contract.storage.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)
ACTIONS = ("promote", "rollback", "pin", "release", "retire")
_MOVES = ("promoted", "rolled_back")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """What the form asks for.

    Attributes:
        dataset: Full name of the dataset.
        action: One of :data:`ACTIONS`.
        model: Model id; None for the action's own choice.
        reason: The reason for the ledger, in one sentence.
    """

    dataset: str
    action: str
    model: str | None
    reason: str


def make_change(change: ModelChange, context: Context, *, team: str | None, conn_id: str | None) -> dict[str, Any]:
    """Make a change of a dataset's models, and send the asset's event where another model is the champion since.

    The run's name is in the ledger's entry, so that another attempt of the run finds its change made and does not make it again.

    Args:
        change: What to change.
        context: Context of the task.
        team: Team of the dataset, whose workspace is used.
        conn_id: Connection of the dataset, where it has one of its own.

    Returns:
        ``dataset``, ``action``, ``changed`` (false where there was nothing to do); ``event``, ``model`` and ``before`` (the
        champion before) of the ledger's entry; ``champion`` and ``held`` (why policies must not promote, or None) as they
        are now; and ``text``, a sentence.

    Raises:
        InvalidConfig: The change is refused; the message says why.
        JobBug: The command failed in another way.
    """
    try:
        config = resolve_config(conn_id, team=team)
        memory = TaskMemory.of_this_process()
        patiently(lambda: open_workspace(config.workspace, memory=memory), log=log, limit_s=config.lost_after)
        found = _registry(change, context, config)
    except JobError as error:
        raise from_job_error(error) from error
    entry = found["entry"] or {}
    log.info("%s", found["text"])
    if entry.get("event") in _MOVES and entry["model"] == found["champion"]:
        _tell(context, config.workspace, change.dataset, entry["model"])
    told = {name: entry.get(name) for name in ("event", "model", "before")}
    return {
        "dataset": change.dataset,
        "action": change.action,
        "changed": bool(entry),
        **told,
        **{name: found[name] for name in ("champion", "held", "text")},
    }


def _registry(change: ModelChange, context: Context, config: NnunetConfig) -> dict[str, Any]:
    """Run the command of the work's wing, and return what it prints."""
    run: Any = context["dag_run"]
    name = f"DAG {run.dag_id}, run {run.run_id}"
    person = getattr(run, "triggering_user_name", None) or name
    options = [f"--user={person}", f"--why={change.reason}", f"--request={name}"]
    model = [change.model] if change.model else []
    line = ["model", "--workspace-json", "-", "--json", *options, "--", change.action, change.dataset, *model]
    done = run_jobs_command(config.python, *line, input=json.dumps(config.workspace.to_json()), capture_output=True)
    for said in done.stderr.splitlines():
        log.info("%s", said)
    if done.returncode == Exit.DONE:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == Exit.REFUSED:
        raise ConfigError(last)
    raise JobBug(f"bug: python -m nnunet_jobs model ended with code {done.returncode}: {last}")


def _tell(context: Context, workspace: Workspace, dataset: str, model: str) -> None:
    metrics = workspace.model_card(dataset, model).get("metrics", {})
    champion_changed(context, dataset, model, dice=metrics.get("holdout_dice"), cv_dice=metrics.get("cv_dice"))
