"""``airflow nnunet doctor``: is this host fit to run jobs?"""
