"""Compares every validation prediction of every fold with its reference, with Dice as in nnU-Net's accumulation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.metrics.evaluation import finite, summarise
from nnunet_jobs.prediction.export import copy_segmentation, fresh_folder
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.training.fold_record import summary_dice

log = logging.getLogger("nnunet_jobs")


class Reference:
    """The reference segmentations of a preprocessed version, and how nnU-Net compares with them.

    Attributes:
        foreground: Labels without background. labels: these, or regions as tuples: what Dice is computed of.
        ending: Ending of the files, with the dot.
        label_manager: nnU-Net's own object.
        reader_writer: Makes a fresh reader and writer.
    """

    def __init__(self, trained: Trained, context: StepContext) -> None:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.dataset_json: dict[str, Any] = read_json(trained.preprocessed / "dataset.json")
        plans_manager = PlansManager(read_json(trained.preprocessed / f"{trained.plans}.json"))
        self.label_manager = plans_manager.get_label_manager(self.dataset_json)
        self.reader_writer: Callable[[], Any] = plans_manager.image_reader_writer_class
        self.foreground = [int(label) for label in self.label_manager.foreground_labels]
        regions = self.label_manager.foreground_regions if self.label_manager.has_regions else self.foreground
        self.labels: list[int | tuple[int, ...]] = [
            tuple(map(int, region)) if isinstance(region, list | tuple) else int(region) for region in regions
        ]
        self.ending = str(self.dataset_json["file_ending"])
        self._folder = trained.preprocessed / "gt_segmentations"
        self._context = context

    def path(self, case: str) -> Path:
        """Return the path of a case's reference segmentation."""
        return self._folder / f"{case}{self.ending}"

    def summarise(self, cases: Sequence[str], folder: Path) -> dict[str, Any]:
        """Compare a folder's segmentations and write its ``summary.json``. Stops between cases on request."""

        def on_case() -> None:
            self._context.beat()
            self._context.check_stop()

        return summarise(
            [self.path(case) for case in cases],
            [folder / f"{case}{self.ending}" for case in cases],
            folder / "summary.json",
            reader_writer=self.reader_writer,
            labels=self.labels,
            ignore_label=self.label_manager.ignore_label,
            threads=self._context.cpus,
            on_case=on_case,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A single configuration or an ensemble, cross-validated.

    Attributes:
        name: Stock nnU-Net's identifier.
        configurations: Its members.
        folder: Predictions of all cases, ``summary.json``, ``plans.json`` and ``dataset.json``.
        summary: As in memory, keys are labels and tuples. dice: mean foreground Dice over the labels that the
            references have, the same ones for every candidate; None where they have none.
    """

    name: str
    configurations: tuple[str, ...]
    folder: Path
    cases: tuple[str, ...]
    summary: dict[str, Any]

    @property
    def dice(self) -> float | None:
        """Return the mean over labels of the mean over cases."""
        return finite(self.summary["foreground_mean"]["Dice"])


def folds_text(folds: Sequence[int | str]) -> str:
    """Return stock nnU-Net's string for several folds, such as ``0_1_2``."""
    return "_".join(map(str, folds))


def single(trained: Trained, configuration: str, reference: Reference) -> Candidate:
    """Collect one configuration's validation predictions of all folds in ``crossval_results_folds_...`` and compare them."""
    folder = trained.folder(configuration) / f"crossval_results_folds_{folds_text(trained.folds)}"
    sources = trained.validation_cases(configuration)
    start_folder(folder, trained.folder(configuration))
    for case, source in sources.items():
        copy_segmentation(source / f"{case}{reference.ending}", folder)
    return Candidate(
        name=trained.folder(configuration).name,
        configurations=(configuration,),
        folder=folder,
        cases=tuple(sources),
        summary=reference.summarise(list(sources), folder),
    )


def start_folder(folder: Path, configuration_folder: Path) -> None:
    """Make an empty folder for predictions, with the plans.json and dataset.json that stock tools need beside them."""
    fresh_folder(folder)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(configuration_folder / name, folder)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest Dice; of equal ones the first, which is the simplest."""
    if all(candidate.dice is None for candidate in candidates):
        log.warning("no validation case has a label: Dice is undefined, and %s is taken because it is the first", candidates[0].name)
    return max(candidates, key=lambda candidate: -1.0 if candidate.dice is None else candidate.dice)


def dice_by_label(folder: Path, dataset_json: dict[str, Any]) -> tuple[float | None, dict[str, float | None]]:
    """Read (mean foreground Dice, Dice by label name) from a folder's summary.json."""
    return summary_dice(read_json(folder / "summary.json"), dataset_json["labels"])
