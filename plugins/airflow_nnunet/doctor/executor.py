"""Checks the executor for the doctor, and for Celery the broker, the workers, and settings for outages."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_nnunet.doctor.finding import Finding

# One week, as in airflow.cfg.template, which is longer than any training that waits in a worker.
_VISIBILITY_S = 604_800
_LONG_OUTAGE_S = 600
_ANSWER_S = 2.0
_TEMPLATE = "see airflow.cfg.template"


def examine_executor() -> Iterator[Finding]:
    """Yield findings about the shared secret, the executor, and Celery if it is used."""
    from airflow.configuration import AIRFLOW_CONFIG, conf

    yield from _shared_secret(conf, AIRFLOW_CONFIG)
    executor = str(conf.get("core", "executor"))
    if "CeleryExecutor" not in executor:
        yield Finding(topic="executor", text=f"{executor}, tasks run on the scheduler's host")
        return
    if importlib.util.find_spec("airflow.providers.celery") is None:
        text = f"{executor}, but its provider is not installed; pip install 'airflow-provider-nnunet[celery]'"
        yield Finding(topic="executor", ok=False, blocks=True, text=text)
        return
    if str(conf.get("database", "sql_alchemy_conn")).startswith("sqlite"):
        text = f"{executor} with SQLite, which one process at a time can write; set sql_alchemy_conn in section [database] to PostgreSQL"
        yield Finding(topic="executor", ok=False, blocks=True, text=text)
    else:
        yield Finding(topic="executor", text=f"{executor}, tasks run on Celery workers")
    from airflow.providers.celery.executors.default_celery import get_default_celery_config

    yield from examine_celery(get_default_celery_config(conf), publish_retries=conf.getint("celery", "task_publish_max_retries"))


def _shared_secret(conf: Any, file: str) -> Iterator[Finding]:
    """Yield a finding if components do not share a secret, because each would make its own and refuse others' tokens.

    Nothing is reported if there is no airflow.cfg yet.
    """
    if conf.get("api_auth", "jwt_private_key_path", fallback=None) or not os.path.isfile(file):
        return
    _, source = conf.as_dict(display_source=True, display_sensitive=False)["api_auth"]["jwt_secret"]
    if source == "default":
        text = f"jwt_secret is not set, so every component makes its own and no task can run; set one secret for all, {_TEMPLATE}"
        yield Finding(topic="api_auth", ok=False, blocks=True, text=text)


def examine_celery(config: Mapping[str, Any], *, publish_retries: int) -> Iterator[Finding]:
    """Check Celery's settings, then ask broker and workers.

    Args:
        config: Celery's configuration, which the provider makes from airflow.cfg.
        publish_retries: Option ``task_publish_max_retries`` of section [celery].
    """
    yield from _settings(config, publish_retries)
    yield from _workers(config)


def _settings(config: Mapping[str, Any], publish_retries: int) -> Iterator[Finding]:
    visible = config["broker_transport_options"].get("visibility_timeout")
    if visible is not None:
        enough = float(visible) >= _VISIBILITY_S
        fix = f"; a task that waits longer in a worker is delivered twice and may lose a try, set {_VISIBILITY_S}, {_TEMPLATE}"
        yield Finding(topic="celery visibility_timeout", ok=enough, text=f"{visible} s{'' if enough else fix}")
    # The executor tries a publish again only after operation_timeout, so Celery's own tries must not end before it.
    endless = config.get("task_publish_retry_policy", {}).get("max_retries", 0) is None
    patient = endless and publish_retries >= _LONG_OUTAGE_S
    text = f"{publish_retries} tries" if endless else "tasks that become due during an outage of the broker fail at once"
    fix = f"; set task_publish_max_retries and the task_publish_retry_policy of extra_celery_config, {_TEMPLATE}"
    yield Finding(topic="celery publishing", ok=patient, text=text + ("" if patient else fix))
    multiplier = config["worker_prefetch_multiplier"]
    if multiplier != 1:
        text = f"{multiplier}; a busy worker holds tasks that another one could run, set 1 in section [celery]"
        yield Finding(topic="celery worker_prefetch_multiplier", ok=False, text=text)
    if not config["task_acks_late"]:
        text = "False; tasks that a killed worker had not started are lost, set True in section [celery]"
        yield Finding(topic="celery task_acks_late", ok=False, text=text)
    if not str(config["result_backend"]).startswith("db+"):
        text = "not a database; a broker that loses its data also loses results, leave result_backend in section [celery] empty"
        yield Finding(topic="celery result_backend", ok=False, text=text)


def _workers(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether the broker answers, and its workers with their queues. The password is not shown."""
    from celery import Celery  # type: ignore[import-untyped, unused-ignore]
    from kombu.exceptions import OperationalError

    with Celery(set_as_current=False) as app:
        app.conf.update(config)
        connection = app.connection_for_read(connect_timeout=_ANSWER_S)
        broker = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_ANSWER_S)
            queues = app.control.inspect(timeout=_ANSWER_S).active_queues() or {}
        except (OperationalError, OSError) as error:
            text = f"{broker} does not answer ({str(error).splitlines()[0]}); start it, or set broker_url in section [celery]"
            yield Finding(topic="celery broker", ok=False, blocks=True, text=text)
            return
        finally:
            connection.release()
    yield Finding(topic="celery broker", text=f"{broker} answers")
    for worker, served in sorted(queues.items()):
        yield Finding(topic="celery worker", text=f"{worker} serves {', '.join(sorted(queue['name'] for queue in served))}")
    if not queues:
        text = "none answers, tasks would stay queued; start one on each host with airflow celery worker --queues ..."
        yield Finding(topic="celery worker", ok=False, text=text)
