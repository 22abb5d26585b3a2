"""The old name of :mod:`airflow_nnunet.jobs.trigger`, which Airflow's database holds for tasks that version 0.1.0 deferred.

A triggerer imports the class by that path until the last such task has ended, and nobody can change the path, so there is no warning.
Removed in 0.3.0.
"""

from __future__ import annotations

from airflow_nnunet.jobs.trigger import JobTrigger

__all__ = ["JobTrigger"]
