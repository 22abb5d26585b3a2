"""``python -m nnunet_jobs serve`` leases a GPU (or a CPU slot), keeps models in memory, and answers on loopback or a Unix socket."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from nnunet_jobs.cli.command import Command, read_workspace
from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError, Interrupted
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import DEVICES, Resources
from nnunet_jobs.contract.steps.params import FAST
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.devices import gpu, host
from nnunet_jobs.prediction.settings import Settings
from nnunet_jobs.predictor_server.settings import ServeSettings
from nnunet_jobs.runner import attempt_limits

log = logging.getLogger("nnunet_jobs")


def _declare(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--workspace", type=Path, help="folder of nnUNet_raw, nnUNet_results, ...")
    where.add_argument("--workspace-json", help="file with the workspace as JSON; '-' reads it from stdin")
    parser.add_argument("--leases", type=Path, help="with --workspace: lease folder of this host (default: leases in the workspace)")
    parser.add_argument("--cpu-slots", type=int, help="with --workspace: jobs at once on this host if it has no GPU (default 1)")
    parser.add_argument(
        "--dataset", action="append", default=[], help="dataset to load at the start, repeat for more; all promoted ones if not given"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="DATASET/MODEL",
        help="another model than the promoted one to load at the start, repeat for more",
    )
    parser.add_argument("--host", default="127.0.0.1", help="loopback address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8600, help="0 takes a free one, which the log names (default 8600)")
    parser.add_argument("--uds", type=Path, help="Unix socket instead of host and port")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that clients may call the server by beside localhost and loopback addresses, repeat for more",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--gpu-memory-mib", type=int, help="memory to lease on the GPU; the whole GPU if not given")
    parser.add_argument("--cpus", type=int, default=0, help="cores; 0 means a fair share")
    parser.add_argument("--no-mirroring", action="store_true", help="faster and slightly less accurate")
    parser.add_argument("--step-size", type=float, default=0.5)
    parser.add_argument("--fast", action="append", choices=FAST, default=[], help="faster; results may differ from stock nnU-Net's")
    parser.add_argument("--waiting", type=int, default=16, help="requests at the same time; more are refused and may be retried")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="seconds for one request")
    parser.add_argument("--upload-mib", type=int, default=512, help="largest request")
    parser.add_argument("--image-mib", type=int, default=4096, help="largest image in memory")
    parser.add_argument("--models-mib", type=int, default=8192, help="memory for models; the least recently used ones are removed")
    parser.add_argument("--drain-s", type=float, default=60.0, help="seconds for running requests after SIGTERM")


def _run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM."""
    scratch = Path(tempfile.mkdtemp(prefix="nnunet-serve-"))
    try:
        settings = _settings(arguments, scratch)
        apply_permissions(settings.workspace)
        _require_packages()
        _serve(settings)
    except Interrupted as error:
        print(error, file=sys.stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exit.DONE


def _serve(settings: ServeSettings) -> None:
    placement = _lease(settings)
    try:
        cpus = cores_of(settings.cpus, slots=placement.slots)
        # before torch and nnU-Net are imported: both read their environment once
        os.environ.update(attempt_limits.environment(cpus=cpus, device=placement.device, gpus=placement.gpus, step="predict"))
        os.environ.update(settings.workspace.nnunet_environment())
        from nnunet_jobs.prediction.reading import ReadUploads
        from nnunet_jobs.predictor_server.app import Server, create_app
        from nnunet_jobs.predictor_server.listening import listen
        from nnunet_jobs.predictor_server.models import WarmModels

        job = JobDir(settings.scratch / "server")
        job.path.mkdir()
        context = StepContext(workspace=settings.workspace, job=job, device=placement.device, gpus=placement.gpus, cpus=cpus)

        with ReadUploads(image_mib=settings.image_mib, setting="--image-mib") as reading:
            models = WarmModels(
                settings.workspace,
                context,
                settings.prediction,
                limit_mib=settings.models_mib,
                reading=reading,
                served=settings.models,
            )
            server = Server(settings, models)
            listen(create_app(server), server)
    finally:
        if placement.lease:
            placement.lease.release()


def cores_of(asked: int, *, slots: int) -> int:
    """Return the cores for a server: those requested, or a fair share of what this host or container allows, never more."""
    ours = max(1, int(host.cores()))
    return min(asked, ours) or max(1, ours // slots)


def _lease(settings: ServeSettings) -> gpu.Placement:
    """Wait for a GPU or a CPU slot, as a job does; SIGTERM gives up.

    Raises:
        Interrupted: The server is to stop meanwhile.
    """
    told: list[int] = []
    before = {number: signal.signal(number, lambda signum, _frame: told.append(signum)) for number in (signal.SIGTERM, signal.SIGINT)}

    def poll() -> None:
        if told:
            raise Interrupted("stopped while waiting for a place to compute")

    try:
        resources = Resources(device=settings.device, gpus=1, gpu_memory_mib=settings.gpu_memory_mib, cpus=settings.cpus)
        owner = f"predictor-server-{socket.gethostname()}-{os.getpid()}"  # in containers all have the same number
        return gpu.acquire(resources, settings.workspace, owner=owner, poll=poll, waiting=lambda message: log.info("%s", message))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(arguments: argparse.Namespace, scratch: Path) -> ServeSettings:
    if arguments.workspace:
        leases = str(arguments.leases.absolute()) if arguments.leases else None
        workspace = Workspace.below(arguments.workspace, leases=leases)
        if arguments.cpu_slots is not None:
            workspace = replace(workspace, cpu_slots=arguments.cpu_slots)
    elif arguments.leases or arguments.cpu_slots is not None:
        raise ConfigError("leases, cpu-slots: --workspace-json says these; leave them out or use --workspace")
    else:
        workspace = read_workspace(arguments.workspace_json)
    prediction = Settings(mirroring=not arguments.no_mirroring, step_size=arguments.step_size, fast=tuple(sorted(set(arguments.fast))))
    named = ("host", "port", "uds", "device", "gpu_memory_mib", "cpus", "waiting", "timeout_s", "upload_mib", "image_mib", "models_mib")
    return ServeSettings(
        workspace=workspace,
        scratch=scratch,
        datasets=tuple(arguments.dataset),
        models=tuple(_named_model(text) for text in arguments.model),
        allow_hosts=tuple(arguments.allow_host),
        prediction=prediction,
        drain_s=arguments.drain_s,
        **{name: getattr(arguments, name) for name in named},
    )


def _named_model(text: str) -> tuple[str, str]:
    dataset, separator, model = text.partition("/")
    if not (dataset and separator and model):
        raise ConfigError(
            field="model", value=text, problem="must be a dataset and a model id with a slash between them, such as 4/0123456789abcdef"
        )
    return dataset, model


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}; install airflow-provider-nnunet[serve]") from error


SERVE = Command(name="serve", help="answer requests for predictions over HTTP, with the models in memory", declare=_declare, run=_run)
