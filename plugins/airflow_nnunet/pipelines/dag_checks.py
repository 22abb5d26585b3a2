"""What Airflow will check about a DAG once its file is parsed, asked beforehand and for one DAG at a time.

Airflow drops every DAG of a file that has an import error, so a DAG that it would refuse must not be in a file with others. That the
values of a dataset file fit Airflow's messages and its database is checked where the file is read, see
:mod:`airflow_nnunet.settings.yaml_tree`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk import DAG


def build_checked(build: Callable[[], DAG], *, thorough: bool) -> tuple[DAG | None, str]:
    """A DAG that Airflow will take, else None and why it would refuse it.

    Args:
        build: Makes the DAG. The site's policies may change what they look at, so they get a DAG of their own.
        thorough: Also check the defaults of the form, without which no scheduled run can be made. That takes as long as
            building the DAG.
    """
    try:
        dag = build()
        dag.validate()  # type: ignore[no-untyped-call]
        dag.check_cycle()
        if thorough:
            dag.params.validate()
        _apply_policies(build)
    except Exception as error:  # whatever it is, Airflow would meet it too
        return None, f"{type(error).__name__}: {error}"
    return dag, ""


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
