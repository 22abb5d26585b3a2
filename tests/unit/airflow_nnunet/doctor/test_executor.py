"""The doctor on CeleryExecutor: the project's template passes, Airflow's defaults do not, and a broker's password is never shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_nnunet.doctor.executor import examine_celery
from devtools.testbed.servers import running_redis
from support.airflow import PROJECT, environment, run

CELERY = {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor"}
STOCK = {
    "broker_transport_options": {"visibility_timeout": 86400},
    "worker_prefetch_multiplier": 1,
    "task_acks_late": True,
    "result_backend": "db+postgresql+psycopg2://airflow@127.0.0.1/airflow",
}


def test_the_template_is_sound_and_a_silent_broker_blocks(home: Path) -> None:
    shutil.copy(PROJECT / "airflow.cfg.template", home / "airflow.cfg")
    broker = {"AIRFLOW__CELERY__BROKER_URL": "redis://:canary@127.0.0.1:1/0"}
    done = run(["-m", "airflow_nnunet", "doctor"], environment(home) | CELERY | broker)
    assert done.returncode == 1
    assert "FAIL  executor: CeleryExecutor with SQLite" in done.stdout
    assert "ok    celery visibility_timeout: 604800 s" in done.stdout
    assert "ok    celery publishing: 3600 tries" in done.stdout
    assert "FAIL  celery broker: redis://:**@127.0.0.1:1/0 does not answer" in done.stdout
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize("secret", [True, False])
def test_a_configuration_in_which_no_task_can_run_blocks(home: Path, secret: bool) -> None:
    """The template as it is, without the secret that all components share."""
    shutil.copy(PROJECT / "airflow.cfg.template", home / "airflow.cfg")
    own = {"AIRFLOW__API_AUTH__JWT_SECRET": "one-secret-for-all-components"} if secret else {}
    done = run(["-m", "airflow_nnunet", "doctor"], environment(home) | own)
    assert ("FAIL  api_auth: jwt_secret is not set" in done.stdout) is not secret, done.stdout


def test_what_would_cost_tries_or_tasks_is_named_with_its_mend() -> None:
    with running_redis() as redis:
        worse = {"worker_prefetch_multiplier": 4, "task_acks_late": False, "result_backend": redis.url}
        found = {item.topic: item for item in examine_celery({**STOCK, **worse, "broker_url": redis.url}, publish_retries=3)}
    assert found["celery broker"].ok
    for topic in ("visibility_timeout", "publishing", "worker_prefetch_multiplier", "task_acks_late", "result_backend", "worker"):
        assert not found[f"celery {topic}"].ok, topic
    text = "\n".join(map(str, found.values()))
    assert redis.password not in text
    assert "set 604800" in text
    assert "airflow celery worker --queues" in text
