"""Trains and validates one fold, from its newest verified checkpoint or from the start, in this process or one for each GPU."""

from __future__ import annotations

import logging
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import ConfigError, Failure
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.training import checkpoint, pretrained
from nnunet_jobs.training.fold import fold_folder, fold_identity, lock_path
from nnunet_jobs.training.fold_record import inspect_fold, record_fold
from nnunet_jobs.training.pretrained import Pretrained
from nnunet_jobs.training.trainer import build

log = logging.getLogger("nnunet_jobs.training")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """Describes what to train; it can be pickled, so that each GPU's process gets the same."""

    params: TrainParams
    dataset: str
    identity: dict[str, Any]
    pretrained: Pretrained | None = None


def fit(plan: TrainingSetup, context: StepContext) -> int | None:
    """Train and validate. Returns the epoch that training was resumed from, None for a new start.

    Raises:
        Interrupted: The job is to stop; the last iteration is saved.
        Bug: Training diverged twice.
    """
    if len(context.gpus) > 1:
        return _fit_on_several(plan, context)
    return _fit(plan, context, _device(context))


def validate_fold(params: TrainParams, context: StepContext, *, version: str, model: str) -> None:
    """Validate a trained fold again if its output is missing, incomplete or lacks probabilities; otherwise do nothing.

    Sets nnU-Net's environment variables to ``version`` and ``model``, and waits for any job that is training the fold.

    Args:
        params: Parameters of the training. ``npz`` requests probabilities too.
        version: Preprocessed version.
        model: Model of this workspace.

    Raises:
        ConfigError: The fold has no verified final checkpoint of this model.
        Interrupted: The job is to stop.
    """
    workspace = context.workspace
    dataset = workspace.resolve_dataset(params.dataset)
    version_root, model_root = workspace.preprocessed_root(version), workspace.model_root(model)
    os.environ.update(workspace.nnunet_environment(version=version, model=model))
    where: dict[str, Any] = {name: getattr(params, name) for name in ("trainer", "plans", "configuration", "fold")}
    what = f"{dataset} {params.configuration} fold {params.fold}"
    with context.content_lock(lock_path(model_root, dataset, params.configuration, params.fold), what=what):
        if inspect_fold(model_root, version_root, dataset, **where, npz=params.npz).complete:
            return
        folder = fold_folder(model_root, dataset, **where)
        identity = fold_identity(model, version_root / dataset, params)
        found = checkpoint.newest_verified(folder, identity)
        if found is None or found.path.name != checkpoint.FINAL:
            raise ConfigError(
                field="fold",
                value=params.fold,
                problem=f"{what} of model {model} is not trained to its end",
                fix="run TrainFoldOperator first",
            )
        device = _device(context)
        trainer = build(params, context, dataset=dataset, identity=identity, device=device)
        trainer.initialize()
        trainer.restore(found)
        trainer.perform_actual_validation(params.npz)
        record_fold(folder, version_root / dataset, params)


def _device(context: StepContext) -> Any:
    import torch
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    device = torch.device(context.device)
    # On a GPU, the processes that augment need the cores. On a CPU they share them with the network, whose threads wait for
    # each other at every layer and become several times slower if there are not enough cores.
    torch.set_num_threads(1 if device.type == "cuda" else max(1, context.cpus - get_allowed_n_proc_DA()))
    return device


def _fit(plan: TrainingSetup, context: StepContext, device: Any) -> int | None:
    params = plan.params
    if device.type == "cuda":
        from torch.backends import cudnn

        cudnn.benchmark = True
    trainer = build(params, context, dataset=plan.dataset, identity=plan.identity, device=device)
    found = checkpoint.newest_verified(Path(trainer.output_folder), plan.identity)
    resumed = None
    if params.seed is not None:
        _seed(params.seed + 1_000_003 * (found.epoch if found else 0))  # a resumed training must not repeat epoch 0's augmentations
    trainer.initialize()
    if found is not None:
        log.info("resuming from %s: epoch %s, iteration %s", found.path.name, found.epoch, found.iteration)
        trainer.restore(found)
        resumed = found.epoch
    elif plan.pretrained is not None:
        pretrained.load_into(trainer, plan.pretrained)
    else:
        log.info("no verified checkpoint: starting from epoch 0")
    if found is None or found.path.name != checkpoint.FINAL:
        trainer.run_training()
    else:
        trainer.remove_running()
    trainer.perform_actual_validation(params.npz)
    return resumed


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # its range
    torch.manual_seed(seed)


# --- several GPUs: nnU-Net's DDP, one process each -----------------------------------------------------------------------
def _fit_on_several(plan: TrainingSetup, context: StepContext) -> int | None:
    from torch import multiprocessing
    from torch.distributed.elastic.utils.distributed import get_free_port

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(get_free_port()))
    folder = context.job.path / f"ranks.{context.attempt}"
    folder.mkdir(exist_ok=True)
    ranks = multiprocessing.spawn(_rank, args=(plan, _plain(context), len(context.gpus)), nprocs=len(context.gpus), join=False)
    told = False
    try:
        while not ranks.join(timeout=1):
            if context.stop.is_set() and not told:
                told = True
                for process in ranks.processes:
                    os.kill(process.pid, signal.SIGTERM)
    except multiprocessing.ProcessException as error:
        for report in sorted(folder.glob("*.failure.json")):
            raise Failure.from_json(read_json(report)).to_error() from error
        raise
    resumed: int | None = read_json(folder / "resumed.json")
    return resumed


def _rank(rank: int, plan: TrainingSetup, surroundings: dict[str, Any], world: int) -> None:
    """Run the process of one GPU."""
    import torch
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
    from torch import distributed

    from nnunet_jobs.processes import die_with_parent, end_forks_with_us

    context = StepContext(**surroundings)
    folder = context.job.path / f"ranks.{context.attempt}"
    signal.signal(signal.SIGTERM, lambda *_: context.stop.set())
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    die_with_parent(signal.SIGKILL, parent=os.getppid())
    end_forks_with_us()
    os.environ.update(nnUNet_n_proc_DA=str(max(1, get_allowed_n_proc_DA() // world)))  # the job's GPUs share its cores
    torch.set_num_threads(1)
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", rank=rank, world_size=world)
    try:
        resumed = _fit(plan, context, torch.device("cuda", rank))
    except BaseException as error:
        failure = Failure(failure_class=classify(error), message=f"GPU {rank}: {error}", attempt=context.attempt)
        write_json(folder / f"{rank}.failure.json", failure.to_json())
        raise  # the other processes wait for this one in a collective; the parent ends them
    if rank == 0:
        write_json(folder / "resumed.json", resumed)
    distributed.destroy_process_group()


def _plain(context: StepContext) -> dict[str, Any]:
    names = ("workspace", "job", "attempt", "device", "gpus", "cpus", "memory_mib")
    return {name: getattr(context, name) for name in names}
