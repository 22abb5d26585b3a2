"""How full the queue is: unfinished runs of all the API's DAGs, those that the asking user may not see included."""

from __future__ import annotations

from airflow_nnunet.serving import DAG_ID


def count_unfinished() -> dict[str, int]:
    """Queued and running runs by DAG."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import func, or_, select

    ours = or_(DagRun.dag_id == DAG_ID, DagRun.dag_id.startswith(f"{DAG_ID}_", autoescape=True))
    unfinished = DagRun.state.in_([DagRunState.QUEUED, DagRunState.RUNNING])
    with create_session(scoped=False) as session:
        rows = session.execute(select(DagRun.dag_id, func.count()).where(ours, unfinished).group_by(DagRun.dag_id)).all()
    return {row[0]: row[1] for row in rows}
