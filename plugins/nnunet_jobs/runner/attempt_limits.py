"""Sets what an attempt may use: less after running out of memory, other GPUs after losing one, and matching thread counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnunet_jobs.contract.failure import Failure, FailureClass
from nnunet_jobs.contract.job.packages import for_this_interpreter
from nnunet_jobs.contract.job.spec import Resources
from nnunet_jobs.devices import host

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_MOST_DATA_WORKERS = 12  # nnU-Net's own default, get_allowed_n_proc_DA


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLimits:
    """Holds the resources after earlier failures, GPUs to avoid, how often the cores are halved, and notes that explain them."""

    resources: Resources
    exclude: tuple[str, ...] = ()
    halvings: int = 0
    notes: tuple[str, ...] = ()

    def cpus(self, slots: int) -> int:
        """Return the cores of this attempt if ``slots`` jobs share the host: the specification's, else a fair share; at least 1."""
        available = max(1, int(host.cores()))
        share = min(self.resources.cpus, available) or max(1, available // slots)
        return max(1, share >> self.halvings)


def limits_after(failures: Sequence[Failure], resources: Resources) -> AttemptLimits:
    """Return the limits of the next attempt, given the failures of earlier ones."""
    notes: list[str] = []
    exclude: list[str] = []
    halvings = 0
    memory = resources.gpu_memory_mib
    for failure in failures:
        gpus = [str(gpu) for gpu in failure.details.get("gpus", ())]
        if failure.failure_class is FailureClass.HOST_OOM:
            halvings += 1
            notes.append(f"attempt {failure.attempt} ran out of host memory: half the cores and worker processes")
        elif failure.failure_class is FailureClass.GPU_OOM:
            exclude += gpus
            # Twice as much the first time, then a whole GPU, since only the trainer knows what it needs.
            memory = memory * 2 if memory and memory == resources.gpu_memory_mib else None
            amount = f"{memory} MiB" if memory else "a whole GPU"
            notes.append(f"attempt {failure.attempt} ran out of GPU memory: {amount}, and another GPU if there is one")
        elif failure.failure_class is FailureClass.GPU_LOST:
            exclude += gpus
            notes.append(f"attempt {failure.attempt} lost GPU {', '.join(gpus)}: another GPU if there is one")
    return AttemptLimits(
        resources=replace(resources, gpu_memory_mib=memory), exclude=tuple(dict.fromkeys(exclude)), halvings=halvings, notes=tuple(notes)
    )


def environment(*, cpus: int, device: str, gpus: Sequence[str], step: str) -> dict[str, str]:
    """Return the environment that limits libraries to the job's cores and GPUs, since they count the machine's and ignore quotas.

    Training on a CPU gives a quarter of the cores, and at least one of two, to augmentation, and the rest to the network. With two
    cores, one each took 34 s where two threads for everything (``nnUNet_n_proc_DA=0``) took 80 s. With one core, data is loaded in
    the training process itself. nnU-Net's planner fails with 0, so only training gets it.

    OpenMP's threads spin for milliseconds while they wait for each other, and so take cores from other processes. Two 3D predictions
    at a time on 2 cores took 9.5 s a case, but 2.4 s with the short spin that is set here unless the environment sets another; a
    single prediction takes 4 % longer with it (1.16 and 1.20 s).
    """
    workers = max(1, min(_MOST_DATA_WORKERS, cpus - 1))
    if step == "train" and device == "cpu":
        workers = 0 if cpus == 1 else max(1, min(_MOST_DATA_WORKERS, cpus // 4))
    found = {name: str(cpus) for name in _THREAD_VARIABLES}
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        found["GOMP_SPINCOUNT"] = "1000"
    found["nnUNet_def_n_proc"] = str(cpus)
    found["nnUNet_n_proc_DA"] = str(workers)
    found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus) if device == "cuda" else ""
    found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    found["PYTHONUNBUFFERED"] = "1"
    found["PYTHONSAFEPATH"] = "1"  # modules in the current folder must not be imported
    inherited = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
    return found | for_this_interpreter(inherited)
