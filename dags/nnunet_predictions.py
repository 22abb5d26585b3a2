"""Has the DAGs of the prediction API: each request to /nnunet-api/predictions is a run of its team's DAG."""

from airflow_nnunet import build_prediction_dags

globals().update({dag.dag_id: dag for dag in build_prediction_dags()})
