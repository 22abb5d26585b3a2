"""Holds one model's trained configurations and their folds, which selection chooses from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import content_hash, read_json
from nnunet_jobs.training.fold import SETTINGS, configuration_entry, configuration_folder, fold_cases
from nnunet_jobs.training.fold_record import FOLD_RECORD, FoldState, inspect_fold

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One model's trained configurations.

    Attributes:
        root: ``nnUNet_results/.versions/<model>/DatasetXXX_Name``.
        preprocessed: The version's folder of the dataset.
        configurations: Configurations that are compared, in order.
        folds: Folds of each; ``("all",)`` for a model that is not cross-validated.
        settings: Settings of the training, from settings.json.
    """

    dataset: str
    model: str
    version: str
    trainer: str
    plans: str
    root: Path
    preprocessed: Path
    configurations: tuple[str, ...]
    folds: tuple[int | str, ...]
    settings: dict[str, Any]

    def folder(self, configuration: str) -> Path:
        """Return nnU-Net's folder of one configuration."""
        return configuration_folder(self.root.parent, self.dataset, trainer=self.trainer, plans=self.plans, configuration=configuration)

    def entry(self, configuration: str) -> dict[str, Any]:
        """Return the plans' entry of a configuration."""
        return configuration_entry(self.preprocessed, self.plans, configuration)

    def previous_stage(self, configuration: str) -> str | None:
        """Return the configuration whose segmentation a cascade needs; None for all others."""
        return self.entry(configuration).get("previous_stage")

    def with_previous_stages(self) -> tuple[str, ...]:
        """Return the compared configurations and all that they need to predict."""
        needed: dict[str, None] = {}
        for configuration in self.configurations:
            chain = [configuration]
            while previous := self.previous_stage(chain[-1]):
                chain.append(previous)
            needed.update(dict.fromkeys(reversed(chain)))
        return tuple(needed)

    def validation_cases(self, configuration: str) -> dict[str, Path]:
        """Return the validation folder of each case, over all folds.

        Raises:
            ConfigError: Two folds validate the same case.
        """
        found: dict[str, Path] = {}
        for fold in self.folds:
            _, cases = fold_cases(self.preprocessed, self.entry(configuration)["data_identifier"], fold)
            for case in cases:
                if case in found:
                    raise ConfigError(
                        field="folds", value=list(self.folds), problem=f"case {case} is validated in two of them", fix="name each fold once"
                    )
                found[case] = self.folder(configuration) / f"fold_{fold}" / "validation"
        return dict(sorted(found.items()))

    def state(self, configuration: str, fold: int | str, *, npz: bool) -> FoldState:
        """Whether one fold is complete."""
        return inspect_fold(
            self.root.parent,
            self.preprocessed.parent,
            self.dataset,
            trainer=self.trainer,
            plans=self.plans,
            configuration=configuration,
            fold=fold,
            npz=npz,
        )

    def needs_npz(self, configuration: str, *, ensembles: bool) -> bool:
        """Whether a configuration's validation probabilities are averaged with another's."""
        return ensembles and len(self.configurations) > 1 and configuration in self.configurations

    @property
    def cross_validated(self) -> bool:
        """Whether its folds were validated on cases that they were not trained on."""
        return ALL not in self.folds

    def further_folds(self, configuration: str) -> tuple[str, ...]:
        """Return further complete folds that may predict by name: ``all``."""
        complete = self.cross_validated and self.state(configuration, ALL, npz=False).complete
        return (ALL,) if complete else ()

    def train_params(self, configuration: str, fold: int | str, *, npz: bool = False) -> TrainParams:
        """Return the parameters that one fold was trained with."""
        return TrainParams(
            dataset=self.dataset,
            configuration=configuration,
            fold=fold,
            version=self.version,
            trainer=self.trainer,
            plans=self.plans,
            npz=npz,
            **{name: self.settings[name] for name in SETTINGS},
        )

    def incomplete(self, *, ensembles: bool) -> Iterator[tuple[str, int | str, FoldState]]:
        """Yield (configuration, fold, state) of all incomplete folds. Ensembles need probabilities of their members."""
        for configuration in self.with_previous_stages():
            for fold in self.folds:
                state = self.state(configuration, fold, npz=self.needs_npz(configuration, ensembles=ensembles))
                if not state.complete:
                    yield configuration, fold, state

    def fingerprint(self) -> str:
        """Return a hash of everything that was verified when the folds ended: checkpoints, predictions, probabilities, inputs."""
        records = {}
        for configuration in self.with_previous_stages():
            for fold in (*self.folds, *self.further_folds(configuration)):
                record = read_json(self.folder(configuration) / f"fold_{fold}" / FOLD_RECORD)
                files = {name: stamped["sha256"] for name, stamped in record["files"].items() if not name.endswith(".pkl")}
                records[f"{configuration}/{fold}"] = [record["inputs"], files]
        return content_hash(records)
