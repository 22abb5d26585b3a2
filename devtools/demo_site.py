"""Sets up the Airflow of ``make demo`` and ``make up``, with the project's DAGs, datasets, teams and pools, and the
demo's DAG.

Its settings are in its ``airflow.cfg``, so a command only needs ``AIRFLOW_HOME`` to find it; ``.demo/env`` sets it.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from devtools.stack import PROJECT, Stack, StackError
from nnunet_jobs.contract.storage.files import write_private

_DAG_FILE = '''"""The demo's dataset file as a DAG."""

from pathlib import Path

from airflow_nnunet import training_dags

globals().update(training_dags(Path({datasets!r})))
'''


def make_stack(folder: Path, datasets: Path, input_roots: Sequence[Path], *, slots: int, port: int | None) -> Stack:
    """Return the private Airflow, which checks jobs often because they are short.

    Args:
        folder: Folder for everything.
        datasets: Folder of the demo's own dataset file; the project's dataset files are read too.
        input_roots: Folders that users may read from.
        slots: Number of jobs that compute at once without a GPU.
        port: Port of the UI; a free one if None.
    """
    dags = folder / "dags"
    dags.mkdir(parents=True, exist_ok=True)
    (dags / "nnunet_demo.py").write_text(_DAG_FILE.format(datasets=str(datasets)))
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": "dags-folder", "classpath": local, "kwargs": {}},
        {"name": "demo", "classpath": local, "kwargs": {"path": str(dags)}},
    ]
    settings = {
        "dag_processor.dag_bundle_config_list": json.dumps(bundles),
        "nnunet.workspace": str(folder / "work"),
        "nnunet.input_roots": os.pathsep.join(map(str, input_roots)),
        "nnunet.cpu_slots": str(slots),
        "nnunet.poll_interval": "0.5",
    }
    return Stack(folder / "airflow", settings=settings, port=port)


def require_free(port: int) -> None:
    """Check that the UI's port is free.

    Raises:
        StackError: Another program listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackError(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}); choose another one: make up PORT={port + 1}"
            ) from error


def write_env(folder: Path, stack: Stack) -> Path:
    """Write ``env`` to source, with which commands find this Airflow and log in. Only its owner may read it."""
    variables = {
        "AIRFLOW_HOME": str(stack.home),
        "NNUNET_API_URL": stack.url,
        "NNUNET_API_USERNAME": stack.username,
        "NNUNET_API_PASSWORD": stack.password,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    path = folder / "env"
    write_private(path, ("\n".join(lines) + "\n").encode())
    return path


def login(folder: Path, stack: Stack) -> str:
    """Return the addresses and the login of a running site."""
    return "\n".join(
        [
            f"UI            {stack.url}",
            f"login         {stack.username}, password {stack.password}",
            f"commands      source {folder / 'env'}     then, for example: airflow nnunet doctor",
            f"datasets      {PROJECT / 'include' / 'datasets'}",
            "stop it       make down",
        ]
    )
