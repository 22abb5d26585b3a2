"""One training DAG for each file in ``include/datasets``. Broken files are reported by ``nnunet_dataset_files.py``."""

from airflow_nnunet import datasets_folder, training_dags

globals().update(training_dags(datasets_folder(__file__)))  # Airflow finds a DAG by being a module's global
