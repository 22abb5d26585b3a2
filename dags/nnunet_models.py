"""Has the DAGs that promote a model, roll back, pin, release or retire: one for each team, and one for datasets without a team."""

from airflow_nnunet import build_model_dags, datasets_folder

globals().update(build_model_dags(datasets_folder(__file__)))
