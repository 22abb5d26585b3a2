"""The one door between the two wings: job specifications, job directories, failure classes, workspace paths.

Pure standard library. ``airflow_nnunet`` imports nothing else from ``nnunet_jobs``.
"""
