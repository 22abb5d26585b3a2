"""Fifty tasks that ask a service which is down, under the provider's retry policy."""

import socket

from airflow.sdk import DAG, task

from airflow_nnunet.jobs.retry import NnunetRetryPolicy

with DAG("service_down", schedule=None, max_active_tasks=50):

    @task(retries=2, retry_policy=NnunetRetryPolicy(base=20, cap=30))
    def ask(number):
        with socket.socket() as free:  # a port on which nobody listens
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        socket.create_connection(address, timeout=5).close()

    ask.expand(number=list(range(50)))
