"""Validates a trained fold with nnU-Net's own functions, and with threads instead of spawned processes.

Spawning eight processes that import torch costs more than validating a small fold. Files and numbers are those of
``nnUNetTrainer.perform_actual_validation``: ``validation/<case>``, ``summary.json``, and for a cascade's low-resolution
stage ``predicted_next_stage/``. Each case appears by rename, so a stopped validation can continue.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import sha256_file, sync_directory, sync_file, write_record
from nnunet_jobs.metrics.evaluation import summarise
from nnunet_jobs.training.cascade import verified_elsewhere
from nnunet_jobs.training.checkpoint import FINAL
from nnunet_jobs.training.fold import next_stage_name, read_json_or_empty
from nnunet_jobs.training.fold_record import FOLD_RECORD, unchanged

log = logging.getLogger("nnunet_jobs.training")

_MARK = ".validated.json"


def validate(trainer: Any, context: StepContext, *, npz: bool) -> None:
    """Predict the validation cases of a trained fold and score them.

    Args:
        trainer: Layered trainer with the final weights loaded.
        npz: Also save probabilities, shape (classes, x, y, z).

    Raises:
        Interrupted: The job is to stop; predicted cases stay and are not predicted again.
    """
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    folder = Path(trainer.output_folder) / "validation"
    _, cases = trainer.do_split()
    stages = _stages(trainer, sorted(cases))
    if trainer.local_rank == 0:
        _prepare(folder, cases, trainer.dataset_json["file_ending"], fold=trainer.fold)
    _barrier(trainer)
    mine = list(cases)[trainer.local_rank :: _world_size(trainer)]
    todo = [case for case in mine if not _predicted(trainer, folder, case, npz=npz, stages=stages[case])]
    context.progress("validate", done=len(mine) - len(todo), total=len(mine))
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    try:
        with _signs_of_life(trainer.network, context):
            _predict(trainer, context, todo, folder, npz=npz, stages=stages, first=len(mine) - len(todo), total=len(mine))
    finally:
        trainer.set_deep_supervision_enabled(True)
        compute_gaussian.cache_clear()
    _barrier(trainer)
    if trainer.local_rank == 0:
        _score(trainer, context, folder, sorted(cases))
        sync_directory(folder)
    _barrier(trainer)


def _stages(trainer: Any, cases: Sequence[str]) -> dict[str, list[str]]:
    """Return by case the next stages that it is preprocessed for; for fold ``all``, those that no other fold predicts for."""
    found: dict[str, list[str]] = {case: [] for case in cases}
    for stage in trainer.configuration_manager.next_stage_names or []:
        identifier = trainer.plans_manager.get_configuration(stage).data_identifier
        lacking = [case for case in cases if not (Path(trainer.preprocessed_dataset_folder_base) / identifier / f"{case}.pkl").is_file()]
        if lacking:
            log.warning("no input for %s of %d cases, such as %s: not in %s", stage, len(lacking), lacking[0], identifier)
        for case in sorted(set(cases) - set(lacking)):
            if trainer.fold != "all" or not verified_elsewhere(Path(trainer.output_folder_base), next_stage_name(stage, case)):
                found[case].append(stage)
    return found


def _prepare(folder: Path, cases: Sequence[str], ending: str, *, fold: int | str) -> None:
    """Keep only predictions of this checkpoint for cases of this split, since nnU-Net would score those of old splits too."""
    checkpoint, mark_path = sha256_file(folder.parent / FINAL), folder / _MARK
    marked = mark_path.is_file() and read_json_or_empty(mark_path).get("checkpoint") == checkpoint
    if folder.is_dir() and not marked:
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    if not marked:
        write_record(mark_path, {"checkpoint": checkpoint})
    for leftover in folder.parent.glob(".validation.*"):  # from a killed validation
        shutil.rmtree(leftover)
    record = read_json_or_empty(folder.parent / FOLD_RECORD) if (folder.parent / FOLD_RECORD).is_file() else {}
    for name, stamped in record.get("files", {}).items():
        path = folder.parent / name
        ours = path.parent == folder or (name.startswith("../") and fold != "all")
        if ours and not unchanged(path, stamped, always_hash=True):
            path.unlink(missing_ok=True)  # changed since it was verified, so it is predicted again
    known = {f"{case}{end}" for case in cases for end in (ending, ".npz", ".pkl", *_sidecar(ending))} | {_MARK}
    for path in folder.iterdir():
        if path.name not in known:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _predicted(trainer: Any, folder: Path, case: str, *, npz: bool, stages: Iterable[str]) -> bool:
    ending = trainer.dataset_json["file_ending"]
    endings: tuple[str, ...] = (ending, ".npz", ".pkl") if npz else (ending,)
    if trainer.plans_manager.image_reader_writer_class.__name__ == "Tiff3DIO":
        endings += _sidecar(ending)
    left = (folder.parent / next_stage_name(stage, case) for stage in stages)
    return all((folder / f"{case}{end}").is_file() for end in endings) and all(path.is_file() for path in left)


def _predict(
    trainer: Any,
    context: StepContext,
    cases: Sequence[str],
    folder: Path,
    *,
    npz: bool,
    stages: Mapping[str, Sequence[str]],
    first: int,
    total: int,
) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True, perform_everything_on_device=True, device=trainer.device,
        verbose=False, verbose_preprocessing=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
        type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    dataset = trainer.dataset_class(
        trainer.preprocessed_dataset_folder, list(cases), folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage
    )
    workers = max(1, min(context.cpus, 8))
    threads = torch.get_num_threads()  # the same for all exports, which run at the same time: torch keeps one number for the process
    exports: deque[Future[None]] = deque()
    with _staging(folder.parent) as staging, ThreadPoolExecutor(workers) as pool:
        for number, case in enumerate(dataset.identifiers):
            context.check_stop()
            while len(exports) > workers:  # probabilities of large cases need much memory
                exports.popleft().result()
            data, properties = _input(trainer, dataset, case)
            logits = predictor.predict_sliding_window_return_logits(data).cpu()
            exports.append(pool.submit(_export, trainer, logits, properties, case, staging, folder, npz, stages[case], threads))
            context.progress("validate", done=first + number + 1, total=total)
            if trainer.is_ddp and number < total // _world_size(trainer) - 1 and (number + 1) % 20 == 0:
                _barrier(trainer)
        for export in exports:
            export.result()
            context.beat()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Make a hidden folder for incomplete predictions; tempfile would deny access to a group that shares the model."""
    path = folder / f".validation.{os.getpid()}.{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _input(trainer: Any, dataset: Any, case: str) -> tuple[Any, dict[str, Any]]:
    import torch
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    data, _, previous, properties = dataset.load_case(case)
    array = data[:]
    if trainer.is_cascaded:
        one_hot = convert_labelmap_to_one_hot(previous[:], trainer.label_manager.foreground_labels, output_dtype=array.dtype)
        array = np.vstack((array, one_hot))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array), properties


def _export(
    trainer: Any,
    logits: Any,
    properties: dict[str, Any],
    case: str,
    staging: Path,
    folder: Path,
    npz: bool,
    next_stages: Sequence[str],
    threads: int,
) -> None:
    """Write one case into ``staging`` and move it to its place; the segmentation last, since it marks the case as complete."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    managers = (trainer.configuration_manager, trainer.plans_manager, trainer.dataset_json)
    for stage in next_stages:
        _export_next_stage(trainer, logits, properties, case, staging, stage, threads)
    export_prediction_from_logits(logits, properties, *managers, str(staging / case), npz, num_threads_torch=threads)
    ending = trainer.dataset_json["file_ending"]
    for end in (*((".npz", ".pkl") if npz else ()), *_sidecar(ending), ending):
        if end not in _sidecar(ending) or (staging / f"{case}{end}").exists():
            _move(staging / f"{case}{end}", folder / f"{case}{end}")


def _sidecar(ending: str) -> tuple[str, ...]:
    """Return the ending of the file in which nnU-Net's writer keeps the spacing of a 3D TIFF; 2D ones have none."""
    return (".json",) if ending in (".tif", ".tiff") else ()


def _export_next_stage(trainer: Any, logits: Any, properties: dict[str, Any], case: str, staging: Path, stage: str, threads: int) -> None:
    """Write a cascade's input: the low-resolution prediction, resampled to the next stage's grid."""
    from nnunetv2.inference.export_prediction import resample_and_save
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    preprocessed = Path(trainer.preprocessed_dataset_folder_base) / trainer.plans_manager.get_configuration(stage).data_identifier
    dataset_class = infer_dataset_class(str(preprocessed))
    target, _, _, _ = dataset_class(str(preprocessed), [case]).load_case(case)
    below = staging / stage
    below.mkdir(exist_ok=True)
    resample_and_save(
        logits, target.shape[1:], str(below / case), trainer.plans_manager, trainer.configuration_manager, properties,
        trainer.dataset_json, threads, dataset_class,
    )  # fmt: skip
    place = Path(trainer.output_folder) / next_stage_name(stage, case)
    place.parent.mkdir(parents=True, exist_ok=True)
    _move(below / place.name, place)  # by its exact name: one case id may be another one with a dot and more


def _move(source: Path, target: Path) -> None:
    sync_file(source)
    os.replace(source, target)


def _score(trainer: Any, context: StepContext, folder: Path, cases: Sequence[str]) -> None:
    ending, manager = trainer.dataset_json["file_ending"], trainer.label_manager
    truth = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    summary = summarise(
        [truth / f"{case}{ending}" for case in cases],
        [folder / f"{case}{ending}" for case in cases],
        folder / "summary.json",
        reader_writer=trainer.plans_manager.image_reader_writer_class,
        labels=manager.foreground_regions if manager.has_regions else manager.foreground_labels,
        ignore_label=manager.ignore_label,
        threads=context.cpus,
        on_case=context.beat,
    )
    for label, metrics in summary["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", metrics["Dice"])
    trainer.logger.log_summary("final_val/foreground_dice", summary["foreground_mean"]["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", summary["foreground_mean"]["Dice"], also_print_to_console=True)


@contextmanager
def _signs_of_life(network: Any, context: StepContext) -> Iterator[None]:
    """Report a heartbeat and check for a stop request before each tile, since one large case may take many minutes on a CPU."""
    from torch._dynamo import OptimizedModule

    if isinstance(getattr(network, "module", network), OptimizedModule):  # a hook would compile it again, and GPUs are fast
        yield
        return

    def before_tile(_module: Any, _inputs: Any) -> None:
        context.beat()
        context.check_stop()

    handle = network.register_forward_pre_hook(before_tile)
    try:
        yield
    finally:
        handle.remove()


def _world_size(trainer: Any) -> int:
    if not trainer.is_ddp:
        return 1
    from torch import distributed

    return int(distributed.get_world_size())


def _barrier(trainer: Any) -> None:
    if trainer.is_ddp:
        from torch import distributed

        distributed.barrier()
