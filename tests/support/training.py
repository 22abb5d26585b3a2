"""A preprocessed phantom and a warm process that trains on it: one import of torch for many trainings, each in a child of its own."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import Failure
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.steps.params import PreprocessParams, TrainParams
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.contract.storage.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
DATASET = "Dataset005_Phantom"
# Three stages are the least: with two, nnU-Net's weights of the deep supervision become 0 / 0.
_STAGES = {"n_stages": 3, "features_per_stage": [4, 8, 8], "n_conv_per_stage": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1]}
_MICRO = {**_STAGES, "kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]]}
_MICRO_3D = {**_STAGES, "kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
CONFIGURATIONS: dict[str, Any] = {
    "2d_micro": {"inherits_from": "2d", "batch_size": 2, "patch_size": [56, 40], "architecture": {"arch_kwargs": _MICRO}},
    "3d_low": {
        "inherits_from": "3d_fullres", "batch_size": 2, "patch_size": [16, 16, 16], "architecture": {"arch_kwargs": _MICRO_3D},
        "next_stage": "3d_high",
    },
    "3d_high": {"inherits_from": "3d_low", "previous_stage": "3d_low", "next_stage": None},
}  # fmt: skip
FAST: dict[str, Any] = {
    "configuration": "2d_micro",
    "fold": 0,
    "iterations": 4,
    "val_iterations": 1,
    "optimizer": "adamw",
    "mirroring": False,
}

# Trainers of a user's own, each with one fault. What they need to know comes through files, so that a resume can differ.
TRAINERS = '''
import os, signal, time
from pathlib import Path
import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def once(trainer, name):
    """True the first time in this fold's life."""
    flag = Path(trainer.output_folder) / f"{name}.flag"
    if flag.exists():
        return False
    flag.touch()
    return True


class KilledInSave(nnUNetTrainer):
    """Dies when epoch 2's checkpoint is written but not yet renamed."""

    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        if self.current_epoch >= 2 and once(self, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)


class KilledHalfway(nnUNetTrainer):
    """Dies when half of epoch 2's checkpoint is on the disk."""

    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        if self.current_epoch >= 2 and once(self, "killed"):
            os.truncate(filename, os.path.getsize(filename) // 2)
            os.kill(os.getpid(), signal.SIGKILL)


class SlowSave(nnUNetTrainer):
    def save_checkpoint(self, filename):
        Path(self.output_folder, "saving.flag").touch()
        time.sleep(float(Path(self.output_folder).parents[3].joinpath("slow").read_text()))
        super().save_checkpoint(filename)


class DivergesOnce(nnUNetTrainer):
    """Its weights and losses become NaN in epoch 2, once."""

    def train_step(self, batch):
        output = super().train_step(batch)
        if self.current_epoch == 2 and once(self, "diverged"):
            self.poisoned = True
            with torch.no_grad():
                for weight in self.network.parameters():
                    weight.fill_(float("nan"))
        return output


class DivergesAlways(nnUNetTrainer):
    """Its losses are NaN from epoch 1 on."""

    def train_step(self, batch):
        output = super().train_step(batch)
        return {"loss": np.array(np.nan)} if self.current_epoch >= 1 else output


class KeepsNothing(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.disable_checkpointing = True


class BreaksAtOnce(nnUNetTrainer):
    def train_step(self, batch):
        raise RuntimeError("sizes do not fit")


class BreaksLater(nnUNetTrainer):
    def train_step(self, batch):
        if self._run.losses:
            raise RuntimeError("sizes do not fit")
        return super().train_step(batch)


class FullOnce(nnUNetTrainer):
    """Raises torch's own error in the iteration that a file names, once."""

    def train_step(self, batch):
        path = Path(__file__).with_name("memory")
        if path.exists() and 4 * self.current_epoch + len(self._run.losses) == int(path.read_text()):
            path.unlink()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().train_step(batch)


class NeverBetter(nnUNetTrainer):
    """Its pseudo Dice falls from epoch 0 on."""

    def on_validation_epoch_end(self, outputs):
        super().on_validation_epoch_end(outputs)
        for key in ("mean_fg_dice", "ema_fg_dice"):
            self.logger.local_logger.my_fantastic_logging[key][-1] = 1 / (2 + self.current_epoch)
'''


def build_workspace(root: Path) -> Workspace:
    """Eight phantoms, registered and preprocessed into two folds. Takes some ten seconds."""
    trainers = root / "trainers"
    trainers.mkdir()
    (trainers / "faulty.py").write_text(TRAINERS)
    workspace = Workspace.below(root / "work", input_roots=(str(root),), trainer_paths=(str(trainers),))
    grow(workspace, root / "Task05_Phantom", cases=8)
    return workspace


def grow(workspace: Workspace, source: Path, *, cases: int) -> None:
    """Write so many phantoms, register them and preprocess them; the first ones are the same however many there are."""
    from nnunet_jobs.dataset.phantom import write_phantom
    from nnunet_jobs.steps import register

    write_phantom(source, cases=cases, seed=1)
    _rename(source, {"phantom_000": "phantom", "phantom_001": "phantom.001", "phantom_002": "phantom.1.2"})
    params = register.RegisterParams(dataset_id=5, name="Phantom", source=str(source), holdout_fraction=0.0)
    register.run(params, job_context(workspace, "register"))
    fields = {"configurations": list(CONFIGURATIONS), "custom_configurations": CONFIGURATIONS, "folds": 2}
    params_of_preprocess = PreprocessParams(datasets=[5], **fields)
    code = "import sys; from support.training import preprocess; preprocess(*sys.argv[1:])"
    argv = [sys.executable, "-c", code, json.dumps(workspace.to_json()), json.dumps(params_of_preprocess.to_json())]
    subprocess.run(argv, env=environment(), check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=300)


def _rename(source: Path, names: Mapping[str, str]) -> None:
    """Give cases of a Decathlon folder other ids: one with dots, and one that another id begins with, must train as any other."""
    description = (source / "dataset.json").read_text()
    for old, new in names.items():
        description = description.replace(f"{old}.nii.gz", f"{new}.nii.gz")
        for folder in ("imagesTr", "labelsTr"):
            (source / folder / f"{old}.nii.gz").rename(source / folder / f"{new}.nii.gz")
    (source / "dataset.json").write_text(description)


def preprocess(workspace: str, params: str) -> None:
    """The step, in a process of its own: nnU-Net takes its environment once."""
    from nnunet_jobs.steps import preprocess as step

    step.run(PreprocessParams.from_json(json.loads(params)), job_context(Workspace.from_json(json.loads(workspace)), "preprocess"))


def environment() -> dict[str, str]:
    """Of a test's processes: one thread each, our packages on the path."""
    path = os.pathsep.join([str(PROJECT / "plugins"), str(PROJECT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1", "MPLBACKEND": "agg"}


def job_context(workspace: Workspace, name: str, **values: Any) -> StepContext:
    """A step's surroundings without a runner."""
    job = JobDir(Path(workspace.jobs) / name)
    job.path.mkdir(parents=True, exist_ok=True)
    return StepContext(workspace=workspace, job=job, **values)


# --- the warm process ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Training:
    """A training under way in a child of the warm process."""

    warm: Warm
    pid: int
    job: JobDir

    def wait(self) -> dict[str, Any]:
        """``{"result": ...}``, ``{"failure": ...}``, or ``{"signal": n}`` when it was killed."""
        status = self.warm.ask({"wait": self.pid})
        if os.WIFSIGNALED(status):
            return {"signal": os.WTERMSIG(status)}
        outcome: dict[str, Any] = read_json(self.job.path / "outcome.json")
        return outcome

    def result(self) -> dict[str, Any]:
        """The step's result; the log when it failed."""
        outcome = self.wait()
        if "result" not in outcome:
            raise AssertionError(f"{outcome}\n{self.job.log.read_text()[-6000:]}")
        return dict(outcome["result"])

    def failure(self) -> Failure:
        """The step's failure; the result when it succeeded."""
        outcome = self.wait()
        if "failure" not in outcome:
            raise AssertionError(f"{outcome}\n{self.job.log.read_text()[-6000:]}")
        return Failure.from_json(outcome["failure"])

    def metrics(self, phase: str | None = None) -> list[dict[str, Any]]:
        """Records so far."""
        records, _ = self.job.read_metrics()
        return [record for record in records if phase in (None, record["phase"])]

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


class Warm:
    """A process that has imported nnU-Net and forks a child for each training."""

    def __init__(self) -> None:
        code = "from support.training import serve; serve()"
        self._temporary = tempfile.TemporaryDirectory(prefix="warm_")  # for what killed children leave in theirs
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment(), "TMPDIR": self._temporary.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._jobs = 0

    def ask(self, request: Mapping[str, Any]) -> Any:
        """One request, one answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def read(self, folder: str | Path, name: str = "checkpoint_final.pth") -> dict[str, Any]:
        """What a checkpoint of a fold holds, as far as JSON can tell."""
        return dict(self.ask({"read": str(Path(folder) / name)}))

    def validate(self, workspace: Workspace, result: Mapping[str, Any], **params: Any) -> Training:
        """Start the validation alone of what a training returned."""
        return self.train(workspace, validate={"version": result["version"], "model": result["model"]}, **params)

    def train(self, workspace: Workspace, *, workers: int = 0, validate: Mapping[str, str] | None = None, **params: Any) -> Training:
        """Start a training of the phantom with these parameters; ``workers`` are data workers."""
        self._jobs += 1
        spec = TrainParams(dataset=5, **{**FAST, **params})
        job = job_context(workspace, f"train-{os.getpid()}-{self._jobs}").job
        request = {"workspace": workspace.to_json(), "params": spec.to_json(), "job": str(job.path), "workers": workers}
        if validate:
            request["validate"] = dict(validate)
        return Training(warm=self, pid=self.ask(request), job=job)

    def close(self) -> None:
        """End the process; its children die with it."""
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()


@functools.cache
def warm_process() -> Warm:
    """The one warm process of this test run."""
    warm = Warm()
    atexit.register(warm.close)
    return warm


@functools.cache
def phantom_workspace() -> Workspace:
    """The one preprocessed phantom of this test run. Tests leave it without models."""
    root = Path(tempfile.mkdtemp(prefix="training_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return build_workspace(root)


@contextmanager
def without_models() -> Iterator[Workspace]:
    """The phantom, before and after without any model."""
    workspace = phantom_workspace()
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace.results, ignore_errors=True)


def dead(pid: int) -> bool:
    """Whether a process has ended; zombies have."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text[text.rfind(")") + 2] in "ZX"


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 60.0, what: str = "") -> Any:
    """The condition's first true value; fails the test when it does not come."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {timeout_s} s in vain for {what or condition}")


def serve() -> None:
    """The warm process: imports once, then a child a request."""
    import contextlib
    import importlib

    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    for module in ("nnunet_jobs.training.fit", "nnunetv2.inference.predict_from_raw_data", "matplotlib.pyplot"):
        importlib.import_module(module)
    with contextlib.suppress(RuntimeError):  # imports all of nnU-Net's trainers, as every look for a user's class does
        recursive_find_trainer_class_by_name("NotThere")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answers.write(f"{os.waitpid(request['wait'], 0)[1]}\n")
        elif "read" in request:
            answers.write(json.dumps(_told(request["read"])) + "\n")
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(_child(request))
            answers.write(f"{pid}\n")


def _told(path: str) -> dict[str, Any]:
    """What of a checkpoint can be told in JSON."""
    import torch

    data = torch.load(path, map_location="cpu", weights_only=False)
    weights = data["network_weights"]
    return {
        "trainer_name": data["trainer_name"],
        "epoch": data["current_epoch"],
        "mirroring": data["inference_allowed_mirroring_axes"],
        "steps": max((int(state["step"]) for state in data["optimizer_state"]["state"].values() if "step" in state), default=None),
        "adam": "betas" in data["optimizer_state"]["param_groups"][0],
        "logged": [len(values) for values in data["logging"].values()],
        "lr": [float(value) for value in data["logging"]["lrs"]],
        "losses": [float(value) for value in data["logging"]["train_losses"]],
        "iteration": data["init_args"]["nnunet_jobs"]["iteration"],
        "heads": {name: float(value.double().sum()) for name, value in weights.items() if "seg_layers" in name},
        "finite": all(bool(torch.isfinite(value).all()) for value in weights.values()),
    }


def _child(request: dict[str, Any]) -> int:
    """What nnunet_jobs.runner.child does for a job, as far as a training can tell."""
    import logging
    import traceback

    from nnunet_jobs.processes import die_with_parent, end_forks_with_us
    from nnunet_jobs.steps import train
    from nnunet_jobs.training.fit import validate_fold

    die_with_parent(signal.SIGKILL, parent=os.getppid())
    job = JobDir(request["job"])
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    context = StepContext(workspace=Workspace.from_json(request["workspace"]), job=job, cpus=1)
    signal.signal(signal.SIGTERM, lambda *_: context.stop.set())
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    end_forks_with_us()
    os.environ.update(nnUNet_n_proc_DA=str(request["workers"]))
    try:
        params = TrainParams.from_json(request["params"])
        if "validate" in request:
            validate_fold(params, context, **request["validate"])
        outcome: dict[str, Any] = {"result": {} if "validate" in request else train.run(params, context)}
    except BaseException as error:
        traceback.print_exc()
        outcome = {"failure": Failure(failure_class=classify(error), message=str(error)).to_json()}
    write_json(job.path / "outcome.json", outcome)
    sys.stdout.flush()
    return 0
