"""The prediction API lets other systems post an image and fetch its segmentation. Airflow is the queue.

app.py         has the routes                        tenants.py    finds the team of a request, with DAG, folder, quota, servers
intake.py      writes an upload into a folder        store.py      defines that folder, which is durable before the answer
core_api.py    calls Airflow's own API as the user   outcome.py    reads state and result from a request's run and folder
operator.py    has the one task of a run             servers.py    asks predictor servers
dags.py        builds the DAGs                       retention.py  removes old requests
models.py      reads what a promoted model needs     client.py     is for the command line and scripts
"""

from __future__ import annotations

URL_PREFIX = "/nnunet-api"
DAG_ID = "nnunet_predictions"
TASK_ID = "predict"
ID_PREFIX = "p-"
