"""Has no DAG. Its import error names each wrong file of ``include/datasets`` with line, field and fix.

The training DAGs are in another file, because Airflow drops every DAG of a file that has an import error.
"""

from airflow_nnunet import check_datasets, datasets_folder

check_datasets(datasets_folder(__file__))
