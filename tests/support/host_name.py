"""Several hosts on one machine: option ``hostname_callable`` of a test's Airflow, so that each worker is a host of its own name."""

from __future__ import annotations

import os


def host_name() -> str:
    """Name of the host that this component pretends to be on."""
    return os.environ.get("NNUNET_TEST_HOST", "control")
