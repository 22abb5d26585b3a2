"""``make soak``: dataset DAGs under a private Airflow whose every process is killed again and again. It imports nothing of the tests."""
