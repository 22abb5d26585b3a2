"""Handles jobs in Airflow: watches, shows and cancels them, and decides how failures are reported and retried."""
