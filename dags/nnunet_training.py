"""Has one training DAG for each file in ``include/datasets``. ``nnunet_dataset_files.py`` reports wrong files."""

from airflow_nnunet import datasets_folder, training_dags

globals().update(training_dags(datasets_folder(__file__)))  # Airflow finds DAGs among a module's globals
