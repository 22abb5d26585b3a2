"""Airflow pools of ``include/pools.json``: what they limit is what operators, the doctor and the teams' files must agree on."""

from __future__ import annotations

GPU_POOL = "gpu"
"""Jobs in flight that want a GPU, or a CPU slot where there is none."""
ARCHIVE_POOL = "pacs"
"""Studies that are fetched from or stored in archives at the same time; the DAG that pulls studies uses it."""
PREDICTION_POOL = "predictions"
"""Requests of the prediction API in flight."""
COMMON_POOLS = (GPU_POOL, ARCHIVE_POOL, PREDICTION_POOL, "default_pool")
"""Pools that no team can have for itself."""
