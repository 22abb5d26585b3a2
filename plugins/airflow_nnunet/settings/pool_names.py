"""Names of the Airflow pools in ``include/pools.json``, for operators, the doctor and the teams' files."""

from __future__ import annotations

GPU_POOL = "gpu"
"""Limits the jobs that use a GPU, or a CPU slot on a host without one."""
ARCHIVE_POOL = "pacs"
"""Limits the studies that are fetched from or stored in archives at the same time, in the DAG that pulls studies."""
PREDICTION_POOL = "predictions"
"""Limits the requests of the prediction API that run at the same time."""
COMMON_POOLS = (GPU_POOL, ARCHIVE_POOL, PREDICTION_POOL, "default_pool")
"""Pools that no team can reserve for itself."""
