"""What Airflow will check about a DAG once its file is parsed, asked beforehand and for one DAG at a time.

Airflow drops every DAG of a file that has an import error, so a DAG that it would refuse must not be in a file with others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk import DAG


def build_checked(build: Callable[[], DAG], *, thorough: bool) -> tuple[DAG | None, str]:
    """A DAG that Airflow will take, else None and why it would refuse it.

    Args:
        build: Makes the DAG. The site's policies may change what they look at, so they get a DAG of their own.
        thorough: Also make the messages that go from process to process and to the database, and check the defaults of the form.
            The values of a checked dataset file fit both, so that is left out where it would only take time.
    """
    try:
        dag = build()
        dag.validate()  # type: ignore[no-untyped-call]
        dag.check_cycle()
        if thorough:
            _serialize(dag)
        _apply_policies(build)
    except Exception as error:  # whatever it is, Airflow would meet it too
        return None, f"{type(error).__name__}: {error}"
    return dag, ""


def _serialize(dag: DAG) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dag.params.validate()
    DagSerialization.to_dict(dag)


def _apply_policies(build: Callable[[], DAG]) -> None:
    """The site's cluster policies, where it has any."""
    import airflow.settings
    from airflow.exceptions import AirflowClusterPolicySkipDag
    from airflow.policies import DefaultPolicy

    settings: Any = airflow.settings
    if all(plugin is DefaultPolicy for plugin in settings.get_policy_plugin_manager().get_plugins()):
        return
    dag = build()
    try:
        settings.dag_policy(dag)
        for task in dag.tasks:
            settings.task_policy(task)
    except AirflowClusterPolicySkipDag:
        return  # Airflow leaves such a DAG out by itself
