"""Airflow's side of a job: how it is watched, retried, shown and cancelled, and how its failure looks to Airflow."""
