"""Checks one DAG at a time as Airflow will after parsing its file.

Airflow drops every DAG of a file that has an import error, so a DAG that it would refuse must not be in a file with
others. Whether the values of a dataset file fit Airflow's messages and database is checked when the file is read, see
:mod:`airflow_nnunet.settings.yaml_tree`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.sdk import DAG


def build_checked(build: Callable[[], DAG], *, thorough: bool) -> tuple[DAG | None, str]:
    """Build a DAG that Airflow will accept, or return None and the reason why it would not.

    Args:
        build: Function that builds the DAG. The site's policies may change a DAG, so they get one of their own.
        thorough: Also check the form's defaults, which scheduled runs need. This takes as long as building the DAG.
    """
    try:
        dag = build()
        dag.validate()  # type: ignore[no-untyped-call]
        dag.check_cycle()
        if thorough:
            dag.params.validate()
        _apply_policies(build)
    except Exception as error:  # Airflow would fail with the same error
        return None, f"{type(error).__name__}: {error}"
    return dag, ""


def _apply_policies(build: Callable[[], DAG]) -> None:
    """Apply the site's cluster policies, if it has any."""
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
        return  # Airflow itself leaves out such a DAG
