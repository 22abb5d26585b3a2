"""Runs a predictor server on loopback, with models of random weights, and acts as its client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from airflow_nnunet.prediction_api.rest_client import wait_until
from devtools.testbed.prediction import PLANS, TRAINER
from devtools.testbed.stages import DATASET, FULL, LOW, save_stage
from nnunet_jobs.contract.storage.files import repoint, write_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset.phantom import phantom_case
from nnunet_jobs.prediction.model import selection_hash

PROJECT = Path(__file__).resolve().parents[2]


def make_model(workspace: Workspace, model: str, *, seed: int, configuration: str = LOW, promote: bool = True) -> Path:
    """Make a selected model and return the folder with its card."""
    root = workspace.model_root(model) / DATASET
    files = save_stage(root, configuration, seed=seed)
    stage = {"trainer": TRAINER, "plans": PLANS, "folds": [0]}
    member: dict[str, Any] = {**stage, "configuration": configuration}
    if configuration == FULL:
        files |= save_stage(root, LOW, seed=seed + 1)
        member["previous_stage"] = {**stage, "configuration": LOW}
    selection = {"members": [member], "postprocessing": []}
    card = {"schema": 1, "dataset": DATASET, "model": model, "selection": selection, "files": files}
    write_json(root / "model.json", {**card, "hash": selection_hash(selection, files)})
    if promote:
        repoint(workspace.champion_link(DATASET), root)
    return root


def make_workspace(folder: Path) -> Workspace:
    """Make a workspace with a registered dataset and one promoted model, ``m1``."""
    workspace = Workspace.below(folder, input_roots=(str(folder.parent),), cpu_slots=4)
    workspace.raw_dataset(DATASET).mkdir(parents=True)
    make_model(workspace, "m1", seed=1)
    return workspace


def make_image(path: Path, *, seed: int = 0, repeat: int = 1) -> Path:
    """Write a scan of 36 x 48 x 40 voxels, larger along its last axis when repeated."""
    import nibabel as nib
    import numpy as np

    voxels, _, affine = phantom_case(5, seed)
    nib.save(nib.Nifti1Image(np.concatenate([voxels] * repeat, axis=2), affine), path)
    return path


class Service:
    """Sends requests to an address, which is a predictor server or nginx in front of several."""

    def __init__(self, *, uds: Path | None = None) -> None:
        self.uds = uds
        self.url = "http://server" if uds else ""

    def client(self, **options: Any) -> httpx.Client:
        """Return a client whose addresses are relative to the server."""
        transport = httpx.HTTPTransport(uds=str(self.uds) if self.uds else None, verify=False)  # no TLS here, and certificates load slowly
        return httpx.Client(base_url=self.url, transport=transport, timeout=120, **options)

    def predict(self, images: Sequence[Path], *, model: str | None = None, **headers: str) -> httpx.Response:
        """Send one request."""
        with self.client() as client:
            return client.post(
                f"/v1/models/{DATASET}/predict",
                params={"model": model} if model else {},
                files=[("images", (path.name, path.read_bytes(), "application/gzip")) for path in images],
                headers=headers,
            )

    def answers(self, page: str = "/readyz") -> bool:
        """Return whether a page answers with 200."""
        if not self._listens():
            return False
        try:
            with self.client() as client:
                return client.get(page).status_code == 200
        except httpx.TransportError:
            return False

    def _listens(self) -> bool:
        """Return whether the Unix socket accepts connections. If it does not, httpx would leave a socket open."""
        if self.uds is None:
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.uds)) == 0

    def metric(self, name: str, *, page: str = "/metrics") -> float:
        """Return the value of one line of the metrics, or 0 if there is none yet."""
        with self.client() as client:
            found = re.search(rf"^{re.escape(name)} (\S+)$", client.get(page).text, re.MULTILINE)
        return float(found[1]) if found else 0.0


class ServerProcess(Service):
    """Runs ``python -m nnunet_jobs serve`` as a context manager: it is ready when entered and ended when left.

    Args:
        workspace: Workspace with its models.
        log: File of its output.
        options: Further options of the command.
        temporary: Folder of its temporary files.
        uds: Unix socket to listen on; a free port of loopback if None.
        hooks: Folder with a ``sitecustomize.py`` that the server's processes import; none if None.
    """

    def __init__(
        self, workspace: Workspace, log: Path, *options: str, temporary: Path, uds: Path | None = None, hooks: Path | None = None
    ) -> None:
        super().__init__(uds=uds)
        self.workspace, self.log, self.temporary = workspace, log, temporary
        self.options = options
        self.paths = [PROJECT / "plugins", *([hooks] if hooks else [])]

    def __enter__(self) -> ServerProcess:
        self.temporary.mkdir(exist_ok=True)
        spec = self.log.with_suffix(".workspace.json")
        write_json(spec, self.workspace.to_json())
        where = ["--uds", str(self.uds)] if self.uds else ["--port", "0"]
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nnunet_jobs", "serve", "--workspace-json", str(spec), "--cpus", "1", *where, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, self.paths)), "TMPDIR": str(self.temporary)},
            )
        try:
            wait_until(self._ready, timeout_s=120, interval_s=0.01, what=lambda: "the server; its log is " + str(self.log))
        except BaseException:
            self.__exit__()  # no one else would end it
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def leftovers(self) -> list[str]:
        """Return the folders of requests that still exist."""
        return [path.name for folder in self.temporary.glob("nnunet-serve-*") for path in folder.iterdir() if path.name != "server"]

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        if not self.url:
            found = re.search(r"listening on (http://\S+)", self.log.read_text())
            self.url = found[1] if found else ""
        if not self.url:
            return False
        return self.answers()
