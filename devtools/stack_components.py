"""Defines the processes of a private Airflow: how each is started, and how to see that it is ready."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airflow_nnunet.prediction_api.rest_client import AirflowClient

_PING_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """Describes one process.

    Attributes:
        name: Name of its log file, also for :meth:`Stack.kill`.
        arguments: Arguments of the ``airflow`` command.
        heartbeat: Its name in the API server's answer about health; None for the API server itself.
        environment: Environment variables of this component only.
    """

    name: str
    arguments: Sequence[str]
    heartbeat: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def is_ready(self, client: AirflowClient, since: dt.datetime) -> bool:
        """Return whether it has reported that it is healthy after ``since``."""
        health = client.health()
        if self.heartbeat is None:
            return bool(health)
        state = health.get(self.heartbeat) or {}
        beat = state.get(f"latest_{self.heartbeat}_heartbeat")
        return state.get("status") == "healthy" and dt.datetime.fromisoformat(str(beat)) > since


@dataclass(frozen=True, slots=True, kw_only=True)
class CeleryWorker(Component):
    """Describes a Celery worker. Several on one machine need different names.

    Attributes:
        broker: Address of the broker of its tasks.
    """

    broker: str

    @classmethod
    def on(cls, *queues: str, name: str, broker: str, concurrency: int = 2, environment: Mapping[str, str] | None = None) -> CeleryWorker:
        """Return a worker of these queues. It serves no logs, because they are on a disk that all components see."""
        return cls(
            name=name,
            arguments=(
                "celery", "worker", "--queues", ",".join(queues), "--concurrency", str(concurrency), "--celery-hostname", name,
                "--skip-serve-logs",
            ),
            environment=dict(environment or {}),
            broker=broker,
        )  # fmt: skip

    def is_ready(self, client: AirflowClient, since: dt.datetime) -> bool:
        """Return whether it answers a ping through the broker."""
        from celery import Celery  # type: ignore[import-untyped, unused-ignore]
        from kombu.exceptions import OperationalError

        # This needs a new connection, because a pooled one may be older than a restart of the broker.
        with Celery(broker=self.broker, set_as_current=False) as app, app.connection_for_write() as connection:
            try:
                return bool(app.control.ping(destination=[f"celery@{self.name}"], timeout=_PING_S, connection=connection))
            except (OperationalError, *connection.connection_errors):
                return False


API_SERVER = Component(name="api-server", arguments=("api-server",))
SCHEDULER = Component(name="scheduler", arguments=("scheduler", "--skip-serve-logs"), heartbeat="scheduler")
DAG_PROCESSOR = Component(name="dag-processor", arguments=("dag-processor",), heartbeat="dag_processor")
TRIGGERER = Component(name="triggerer", arguments=("triggerer", "--skip-serve-logs"), heartbeat="triggerer")
# In the order of their start; they are stopped in reverse order.
CORE = (API_SERVER, DAG_PROCESSOR, TRIGGERER, SCHEDULER)
