"""``airflow nnunet doctor`` checks whether this host can run jobs."""
