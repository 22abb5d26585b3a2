"""Predicts with one model that stays loaded: reads and preprocesses a case, runs the networks, writes the segmentation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import Bug, FailureClass
from nnunet_jobs.prediction.blame import in_words, require_of_the_case
from nnunet_jobs.prediction.cases import Case
from nnunet_jobs.prediction.export import average, case_dice, fresh_folder, label_voxels, to_segmentation, volumes_ml, write_outputs
from nnunet_jobs.prediction.model import SelectedModel
from nnunet_jobs.prediction.network import StageNetwork
from nnunet_jobs.prediction.reading import ImageReading, ReadHere
from nnunet_jobs.prediction.review import Review
from nnunet_jobs.prediction.settings import Settings
from nnunet_jobs.prediction.threads import CaseThreads
from nnunet_jobs.prediction.work import Abandoned, CaseWork, Record

log = logging.getLogger("nnunet_jobs")


class Predictor:
    """Holds a selected model in memory and predicts with it.

    Args:
        model: Selected model; each file is verified against the card while it is loaded.
        context: Device, cores, stop request and heartbeats.
        settings: Settings of the prediction.
        reading: Checks and reads images; done in the calling thread if None.
        review: Collects flags and pictures; none if None.

    Raises:
        DataError: A file of the model is missing or damaged.
    """

    def __init__(
        self,
        model: SelectedModel,
        context: StepContext,
        settings: Settings | None = None,
        *,
        reading: ImageReading | None = None,
        review: Review | None = None,
    ) -> None:
        import torch

        self.model = model
        self.settings = settings or Settings()
        self._context = context
        self._reading = reading or ReadHere()
        self._review = review or Review()
        device = torch.device(context.device)
        cpus = max(1, context.cpus)
        self._networks = {stage: StageNetwork(model, stage, device=device, cpus=cpus, fast=self.settings.fast) for stage in model.stages()}
        self._last = self._networks[model.members[0]]

    def predict(
        self,
        cases: Sequence[Case],
        output: Path,
        *,
        scratch: Path | None = None,
        on_record: Callable[[Case, Record], None] = lambda _case, _record: None,
    ) -> list[Record]:
        """Predict cases one after another; a case that fails is recorded, and the others continue.

        Args:
            cases: Cases to predict; Dice is computed for those with a label.
            output: Existing folder for the segmentations.
            scratch: Folder on the same file system for incomplete files; emptied first.
            on_record: Called after each case, when its files are in place.

        Returns:
            One record for each case, in order: ``status`` (``predicted`` or ``failed``), ``reason`` and ``failure_class``, ``file``,
            ``files`` (sha256 by name), ``volumes_ml`` and ``dice`` by label name, ``flags``, ``seconds``, ``model``, ``model_hash``.

        Raises:
            Interrupted, DiskFull, GpuOutOfMemory, HostOutOfMemory and similar errors, which are not one case's fault.
        """
        scratch = scratch or output / ".partial"
        fresh_folder(scratch)
        threads = CaseThreads(
            self._context,
            read=self.read,
            infer=partial(self.infer, scratch=scratch),
            finish=partial(self.finish, output=output, scratch=scratch),
        )
        records = threads.run(cases, on_record)
        fresh_folder(scratch)
        scratch.rmdir()
        return records

    @property
    def channels(self) -> int:
        """Return the number of images that a case must have."""
        return self._last.channels

    @property
    def channel_names(self) -> list[str]:
        """Return the channels' names in order."""
        return self._last.channel_names

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Return nnU-Net's description of the dataset that the model was trained on."""
        return self._last.dataset_json

    @property
    def file_ending(self) -> str:
        """Return the ending of images and segmentations, with the dot."""
        return self._last.file_ending

    @property
    def memory_bytes(self) -> int:
        """Return the bytes that the model's weights take, on the CPU and on the device together."""
        return sum(network.memory_bytes for network in self._networks.values())

    # --- the three threads' work --------------------------------------------------------------------------------
    def read(self, work: CaseWork) -> CaseWork:
        """Check and preprocess a case's images for all stages that need no other's segmentation (first part, any thread)."""
        case = work.case

        def prepare() -> None:
            reader = self._last.reader_writer().__class__.__name__
            beat = partial(self._on_tile, work)
            found = self._reading.check(case, file_ending=self.file_ending, channels=self.channels, reader=reader, beat=beat)
            work.odd = (*case.warnings, *found)
            with self._reading.reading(case):
                for stage, network in self._networks.items():
                    if stage.previous is None:
                        watcher = self._review.image_watcher(case.case)
                        work.arrays[stage] = network.preprocess(case.images, previous=None, on_image=watcher)

        self._guarded(work, prepare)
        return work

    def infer(self, work: CaseWork, scratch: Path) -> CaseWork:
        """Run the networks (second part, one thread at a time). ``scratch``: folder for a cascade's first segmentation."""
        self._guarded(work, partial(self._run_networks, work, scratch), folders=(scratch,))
        return work

    def _run_networks(self, work: CaseWork, scratch: Path) -> None:
        for stage in self.model.stages():
            network = self._networks[stage]
            if stage.previous is not None:
                before = self._networks[stage.previous]
                properties = work.arrays[stage.previous][1]
                segmentation, _ = self._to_segmentation(before, work.logits[stage.previous], properties, probabilities=False)
                path = scratch / f"{work.case.case}.previous{before.file_ending}"
                before.reader_writer().write_seg(segmentation, str(path), properties)
                try:
                    with self._reading.reading(work.case):
                        work.arrays[stage] = network.preprocess(work.case.images, previous=path)
                except Exception as error:
                    if not path.exists():  # the reader's message would name the images as the cause
                        raise Bug(f"{path.name}: the first stage's segmentation is missing") from error
                    raise
                path.unlink()
            agreement = self._review.folds(network)
            work.logits[stage] = network.logits(
                work.arrays[stage][0],
                mirroring=self.settings.mirroring,
                step_size=self.settings.step_size,
                on_tile=partial(self._on_tile, work),
                on_fold=agreement.add if agreement else None,
            )
            if agreement:
                self._review.folds_done(work.case.case, agreement)

    def finish(self, work: CaseWork, output: Path, scratch: Path) -> Record:
        """Turn logits into files and a record (third part, any thread)."""
        record: Record = {"model": self.model.model, "model_hash": self.model.hash}

        def export() -> None:
            members, several = self.model.members, len(self.model.members) > 1
            properties = work.arrays[members[0]][1]
            probabilities = several or self.settings.probabilities
            results = [
                self._to_segmentation(self._networks[stage], work.logits[stage], work.arrays[stage][1], probabilities=probabilities)
                for stage in members
            ]
            segmentation, mean = average(self._last, [result[1] for result in results]) if several else results[0]
            files, final = write_outputs(
                self._last,
                work.case.case,
                segmentation,
                mean if self.settings.probabilities else None,
                properties,
                postprocessing=self.model.postprocessing if self.settings.postprocessing else (),
                output=output,
                scratch=scratch,
            )
            name = f"{work.case.case}{self._last.file_ending}"
            voxels = label_voxels(self._last.dataset_json, final)
            volumes = volumes_ml(voxels, properties, final.shape)
            record.update(status="predicted", file=name, files=files, volumes_ml=volumes)
            record.update(
                self._review.assess(work.case.case, final, voxels=voxels, volumes_ml=volumes, properties=properties, odd=work.odd)
            )
            if work.case.label is not None:
                record["dice"], record["reference_labels"] = case_dice(self._last, work.case.label, output / name)

        self._guarded(work, export, folders=(output, scratch))
        if work.problem is not None:
            record.update(status="failed", reason=work.problem, failure_class=str(FailureClass.BUG if work.ours else FailureClass.DATA))
        record["seconds"] = round(time.monotonic() - work.begun, 2)
        return record

    # --- private ------------------------------------------------------------------------------------------------
    def _guarded(self, work: CaseWork, act: Callable[[], None], *, folders: Sequence[Path] = ()) -> None:
        """Do a part of a case's work unless it has failed already; record an error that is the case's fault.

        Args:
            folders: Folders of the job, in which the work reads and writes; a missing one is not the case's fault.
        """
        if work.problem is not None:
            return
        try:
            act()
        except Abandoned:
            self._review.forget(work.case.case)
            raise
        except Exception as error:
            require_of_the_case(error, work.case, folders)
            if classify(error) is FailureClass.BUG:
                log.exception("case %s failed", work.case.case)
                work.ours = True
            work.problem = in_words(error)
            work.arrays, work.logits = {}, {}
            self._review.forget(work.case.case)

    def _to_segmentation(self, network: StageNetwork, logits: Any, properties: dict[str, Any], *, probabilities: bool) -> tuple[Any, Any]:
        return to_segmentation(
            network,
            logits,
            properties,
            probabilities=probabilities,
            threads=max(1, self._context.cpus),
            linear="resampling" in self.settings.fast,
        )

    def _on_tile(self, work: CaseWork) -> None:
        if work.abandoned.is_set():
            raise Abandoned(work.case.case)
        self._context.check_stop()
        self._context.beat()
