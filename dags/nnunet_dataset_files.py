"""Has no DAG. Its import error names each broken file of ``include/datasets``, its line, its field and the fix.

The training DAGs live in another file because Airflow drops every DAG of a file that has an import error.
"""

from airflow_nnunet import check_datasets, datasets_folder

check_datasets(datasets_folder(__file__))
