"""The Airflow of ``make demo`` and ``make up``: the project's own DAGs, datasets, teams and pools, and the demo's DAG beside them.

Its settings are in its ``airflow.cfg``, so ``AIRFLOW_HOME`` is all that a command needs to find it; ``.demo/env`` sets it.
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
    """The private Airflow, set to look at jobs often because they are short.

    Args:
        folder: Where everything goes.
        datasets: Folder of the demo's own dataset file; the project's are read too.
        input_roots: Folders that users may read from.
        slots: Jobs that compute at once where there is no GPU.
        port: Port of the UI; a free one when None.
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
    """See that the UI's port is free.

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
    """Write ``env`` into the demo's folder, for ``source``: its commands find this Airflow and may log in. Only its owner may read it."""
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
    """What a person needs to use a running site."""
    return "\n".join(
        [
            f"UI            {stack.url}",
            f"login         {stack.username}, password {stack.password}",
            f"commands      source {folder / 'env'}     then, for example: airflow nnunet doctor",
            f"datasets      {PROJECT / 'include' / 'datasets'}",
            "stop it       make down",
        ]
    )
