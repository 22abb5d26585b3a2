"""Finds out how studies that were handed out ended, from the states of the tasks that a run mapped over them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_nnunet.dicomweb.ledger import DONE, FAILED, Entry
from airflow_nnunet.jobs.task_state import run_state

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

log = logging.getLogger(__name__)

_UNFINISHED = ("queued", "running")
_BAD = ("failed", "upstream_failed")
_GOOD = ("success", "skipped")


def entries_with_outcome(task: BaseOperator, dag_id: str, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose runs have ended, with their outcomes.

    A study has failed if none of the tasks mapped over it ran, or if one of them failed, or one mapped over their
    results. Tasks cannot be assigned to studies if the list is changed before it is mapped, or if some tasks return
    nothing to map over. Then all studies of a run in which such a task failed count as failed. They are handed out
    again, and finished work is not repeated. The studies of a deleted run also count as failed.

    Args:
        task: The sensor, in its DAG.
        entries: Entries of that DAG's earlier runs.
    """
    by_run: dict[str, list[Entry]] = {}
    for entry in entries:
        by_run.setdefault(entry.run, []).append(entry)
    found: list[Entry] = []
    for run, given in by_run.items():
        state = run_state(dag_id, run)
        if state in _UNFINISHED:
            continue
        if state is None:
            log.warning("run %s was deleted; its %s studies count as failed", run, len(given))
            found += [replace(entry, state=FAILED) for entry in given]
            continue
        found += _entries_after(task, dag_id, run, state, given)
    return found


def _entries_after(task: BaseOperator, dag_id: str, run: str, state: str, given: list[Entry]) -> list[Entry]:
    mapped = mapped_over(task)
    further = mapped_further(task, mapped)
    names = [] if task.get_dag() is None else [*mapped, *further] or sorted(task.get_flat_relative_ids(upstream=False))
    states = _task_states(dag_id, run, names) if names else {}
    if mapped:
        # A task that the run does not have was added to the DAG later.
        known = [name for name in mapped if name in states or any(f"{name}_{entry.index}" in states for entry in given)]
        handed_out = max(len(_of(states, name)) for name in mapped)
        return [
            replace(
                entry, state=FAILED if _fails_later(states, further, entry.index, handed_out) else _by_study(states, known, entry.index)
            )
            for entry in given
        ]
    failed = state != "success" or any(value in _BAD for value in states.values())
    return [replace(entry, state=FAILED if failed else DONE) for entry in given]


def _by_study(states: Mapping[str, str | None], known: list[str], index: int) -> str:
    # A task that was skipped as a whole, for instance by a branch, was never expanded.
    found = [states.get(f"{name}_{index}", states.get(name)) for name in known]
    return DONE if found and all(value in _GOOD for value in found) else FAILED


def _fails_later(states: Mapping[str, str | None], further: list[str], index: int, handed_out: int) -> bool:
    """Return whether a task that was mapped over results failed for this study or for an unknown one."""
    for name in further:
        if states.get(name, "success") not in _GOOD:  # never expanded, so it ran for no study
            return True
        own = _of(states, name)
        failed = {number for number, value in own.items() if value not in (*_GOOD, "removed")}
        # If there are as many as studies, each has its study's index. A missing result shifts the indexes after it.
        if failed and (index in failed or len(own) != handed_out):
            return True
    return False


def _of(states: Mapping[str, str | None], name: str) -> dict[int, str | None]:
    """Return the states of a task's instances by map index."""
    ends = ((key.removeprefix(f"{name}_"), value) for key, value in states.items() if key.startswith(f"{name}_"))
    return {int(end): value for end, value in ends if end.isdecimal()}


def _task_states(dag_id: str, run: str, names: list[str]) -> dict[str, str | None]:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    found = RuntimeTaskInstance.get_task_states(dag_id=dag_id, task_ids=names, run_ids=[run]).get(run, {})
    return {name: None if value is None else str(getattr(value, "value", value)) for name, value in found.items()}


def mapped_over(task: BaseOperator) -> list[str]:
    """Return tasks mapped over this task's list and nothing else, so that a map index is a study's index in the list."""
    from airflow.sdk.definitions.taskgroup import MappedTaskGroup

    if task.get_dag() is None:
        return []
    found: list[str] = []
    for node in task.iter_mapped_dependants():
        if isinstance(node, MappedTaskGroup):
            expansion, names = node._expand_input, [item.task_id for item in node.iter_tasks()]
        else:
            expansion, names = node._get_specified_expand_input(), [node.task_id]
        if not _one_to_one(expansion, task):
            return []
        found += names
    return sorted(found)


def mapped_further(task: BaseOperator, mapped: list[str]) -> list[str]:
    """Return tasks that are mapped over the results of those tasks, directly or through others."""
    dag = task.get_dag()
    found: list[str] = []
    waiting = list(mapped) if dag is not None else []
    while dag is not None and waiting:
        for node in dag.get_task(waiting.pop()).iter_mapped_dependants():
            names = [item.task_id for item in node.iter_tasks()] if hasattr(node, "iter_tasks") else [node.task_id]
            new = [name for name in names if name not in mapped and name not in found]
            found += new
            waiting += new
    return sorted(found)


def _one_to_one(expansion: Any, task: BaseOperator) -> bool:
    from airflow.sdk.definitions.xcom_arg import MapXComArg, PlainXComArg

    values = list(expansion.value.values()) if isinstance(expansion.value, Mapping) else [expansion.value]
    if len(values) != 1:
        return False
    value = values[0]
    while isinstance(value, MapXComArg):
        value = value.arg
    return isinstance(value, PlainXComArg) and value.operator.task_id == task.task_id
