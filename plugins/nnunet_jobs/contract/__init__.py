"""The interface between the two packages: job specifications, job directories, failure classes, workspace paths.

It uses only the standard library. ``airflow_nnunet`` imports nothing else from ``nnunet_jobs``.
"""
