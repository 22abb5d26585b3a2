"""The old name of :mod:`airflow_nnunet.jobs.trigger`, which Airflow's database has for tasks that version 0.1.0
deferred.

A triggerer imports the class by this path until the last such task has ended. Nobody can change the path, so there is
no warning. It is removed in 0.3.0.
"""

from __future__ import annotations

from airflow_nnunet.jobs.trigger import JobTrigger

__all__ = ["JobTrigger"]
