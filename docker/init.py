"""The init service: runs migrations, creates pools and imports connections. It may run again at any time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

HOME = Path(os.environ.get("AIRFLOW_HOME", "/opt/airflow"))


def airflow(*arguments: str | Path) -> None:
    """Run one command of Airflow.

    Raises:
        SystemExit: The command failed; its own output has the reason.
    """
    code = subprocess.run(["airflow", *map(str, arguments)], stdin=subprocess.DEVNULL, check=False).returncode
    if code:
        raise SystemExit(f"airflow {arguments[0]} {arguments[1]} failed with exit code {code}")


def pools(text: str, gpu_slots: str) -> str:
    """Return a pools file in which ``auto`` is the number of GPUs of all hosts, which this container cannot see.

    Raises:
        SystemExit: The number is not an integer of 1 or more.
    """
    if not gpu_slots.isdigit() or int(gpu_slots) < 1:
        raise SystemExit(
            f"NNUNET_GPU_SLOTS={gpu_slots!r}: must be the number of jobs that may compute at once on all hosts together, 1 or more"
        )
    data = json.loads(text)
    for entry in data.values():
        if entry.get("slots") == "auto":
            entry["slots"] = int(gpu_slots)
    return json.dumps(data)


def main() -> None:
    """Run migrations, then create pools and connections for the DAGs."""
    airflow("db", "migrate")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pools.json"
        file.write_text(pools((HOME / "include" / "pools.json").read_text(), os.environ.get("NNUNET_GPU_SLOTS", "1")))
        airflow("nnunet", "sync-pools", file)
    connections = Path(os.environ.get("NNUNET_CONNECTIONS", "/run/secrets/connections.json"))
    if json.loads(connections.read_text()):
        airflow("connections", "import", "--overwrite", connections)


if __name__ == "__main__":
    main()
