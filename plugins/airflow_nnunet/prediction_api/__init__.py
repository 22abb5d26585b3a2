"""The prediction API: other systems post an image and fetch its segmentation; Airflow is the queue.

app.py             the routes                      tenants.py    whose request it is: the team, its DAG, folder, quota, servers
intake.py          an upload becomes a folder      store.py      that folder: durable before the answer, removed by retention
core_api.py        Airflow's own API, as the user  outcome.py    what a request's run and folder say about it
operator.py        the run's one task              servers.py    asking a predictor server
dags.py            the DAGs                        retention.py  what is removed when
models.py          what a promoted model reads     client.py     for the command line and scripts
"""

from __future__ import annotations

URL_PREFIX = "/nnunet-api"
DAG_ID = "nnunet_predictions"
TASK_ID = "predict"
ID_PREFIX = "p-"
