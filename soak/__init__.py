"""``make soak`` runs dataset DAGs under a private Airflow while its processes are killed. It imports nothing from tests."""
