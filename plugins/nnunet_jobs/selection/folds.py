"""What is selected from: one model's trained configurations, each requested fold complete, repaired, or refused by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import FindBestParams, TrainParams
from nnunet_jobs.contract.storage.files import content_hash, read_json
from nnunet_jobs.contract.storage.withdrawals import listed, require_none_withdrawn, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT, VERSIONS, Workspace
from nnunet_jobs.training.fold import (
    FOLD_RECORD,
    SETTINGS,
    SETTINGS_RECORD,
    FoldState,
    configuration_entry,
    configuration_folder,
    fold_cases,
    fold_identity,
    inspect_fold,
    read_json_or_empty,
    unchanged,
)

log = logging.getLogger("nnunet_jobs")
ALL = "all"


class OnlyFoldAll(ConfigError):
    """A model that is trained on all cases alone, so that nothing of it is cross-validated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One model's trained configurations.

    Attributes:
        root: ``nnUNet_results/.versions/<model>/DatasetXXX_Name``.
        preprocessed: The version's folder of the dataset.
        configurations: Configurations that are compared, in order.
        folds: Folds of each; ``("all",)`` for a model that is not cross-validated.
        settings: What settings.json says the model was trained with.
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
        """nnU-Net's folder of one configuration."""
        return configuration_folder(self.root.parent, self.dataset, trainer=self.trainer, plans=self.plans, configuration=configuration)

    def entry(self, configuration: str) -> dict[str, Any]:
        """The plans' entry of a configuration."""
        return configuration_entry(self.preprocessed, self.plans, configuration)

    def previous_stage(self, configuration: str) -> str | None:
        """The configuration whose segmentation a cascade needs, None for all others."""
        return self.entry(configuration).get("previous_stage")

    def with_previous_stages(self) -> tuple[str, ...]:
        """The compared configurations and all that they need to predict."""
        needed: dict[str, None] = {}
        for configuration in self.configurations:
            chain = [configuration]
            while previous := self.previous_stage(chain[-1]):
                chain.append(previous)
            needed.update(dict.fromkeys(reversed(chain)))
        return tuple(needed)

    def validation_cases(self, configuration: str) -> dict[str, Path]:
        """Validation folder by case over all folds.

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
        """Folds that are complete beside the compared ones, and may be predicted with by name: ``all``."""
        complete = self.cross_validated and self.state(configuration, ALL, npz=False).complete
        return (ALL,) if complete else ()

    def train_params(self, configuration: str, fold: int | str, *, npz: bool = False) -> TrainParams:
        """What one fold was trained with."""
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
        """(configuration, fold, state) of all that is not complete. Ensembles ask for probabilities of what they average."""
        for configuration in self.with_previous_stages():
            for fold in self.folds:
                state = self.state(configuration, fold, npz=self.needs_npz(configuration, ensembles=ensembles))
                if not state.complete:
                    yield configuration, fold, state

    def fingerprint(self) -> str:
        """Hash of everything that was verified when the folds ended: checkpoints, predictions, probabilities, inputs."""
        records = {}
        for configuration in self.with_previous_stages():
            for fold in (*self.folds, *self.further_folds(configuration)):
                record = read_json(self.folder(configuration) / f"fold_{fold}" / FOLD_RECORD)
                files = {name: stamped["sha256"] for name, stamped in record["files"].items() if not name.endswith(".pkl")}
                records[f"{configuration}/{fold}"] = [record["inputs"], files]
        return content_hash(records)


def find_trained(params: FindBestParams, workspace: Workspace, dataset: str) -> Trained:
    """The model that the parameters name, or the newest one of the dataset whose folds are complete.

    Raises:
        ConfigError: There is no such model, or it has none of the configurations; names those that exist.
    """
    models = [params.model] if params.model else _models(params, workspace, dataset)
    if not models:
        raise ConfigError(
            field="model",
            problem=f"nothing is trained for {dataset} with trainer {params.trainer} and plans {params.plans}",
            fix="run TrainFoldOperator first",
        )
    found, refused = [], []
    for model in models:
        try:
            found.append(_trained(params, workspace, dataset, model))
        except ConfigError as error:
            refused.append(error)
    if not found and params.promote == "always" and params.folds != [ALL] and any(isinstance(error, OnlyFoldAll) for error in refused):
        log.warning("nothing but fold 'all' is trained: taken as it is, without a cross-validation, because promote is 'always'")
        return find_trained(replace(params, folds=[ALL]), workspace, dataset)
    if not found:
        raise refused[0]
    if len(found) > 1:
        for trained in found:
            if not any(trained.incomplete(ensembles=False)):  # missing probabilities can be repaired; the newest training counts
                return trained
    return found[0]


def require_complete(trained: Trained, params: FindBestParams, context: StepContext) -> None:
    """Every needed fold complete; with ``repair``, a validation that is missing is run from a verified final checkpoint.

    Raises:
        ConfigError: Lists configuration, fold and reason of each fold that is not complete.
    """
    incomplete = list(trained.incomplete(ensembles=params.ensembles))
    refused = []
    repairs = []
    for configuration, fold, state in incomplete:
        problem = _not_repairable(trained, configuration, fold) if params.repair else None
        if params.repair and problem is None:
            repairs.append((configuration, fold))
        else:
            reasons = dict.fromkeys([*state.reasons, *([problem] if problem else [])])
            refused.append(f"{configuration} fold {fold}: {'; '.join(reasons)}")
    if refused:
        fix = "train these folds" if params.repair else "train these folds, or set repair=True where only the validation is missing"
        raise ConfigError(field="model", value=trained.model, problem=f"folds are not complete ({' | '.join(refused)})", fix=fix)
    if not repairs:
        return
    from nnunet_jobs.training.fit import validate_fold

    for done, (configuration, fold) in enumerate(repairs):
        context.check_stop()
        context.progress("repair", done, len(repairs), configuration=configuration, fold=fold)
        log.info("validating fold %s of %s again", fold, configuration)
        npz = trained.needs_npz(configuration, ensembles=params.ensembles)
        validate_fold(trained.train_params(configuration, fold, npz=npz), context, version=trained.version, model=trained.model)
    still = [
        f"{configuration} fold {fold}: {'; '.join(state.reasons)}"
        for configuration, fold, state in trained.incomplete(ensembles=params.ensembles)
    ]
    if still:
        raise ConfigError(
            field="model",
            value=trained.model,
            problem=f"a new validation did not complete: {' | '.join(still)}",
            fix="train these folds again",
        )


def _models(params: FindBestParams, workspace: Workspace, dataset: str) -> list[str]:
    """Models of the dataset with this trainer and plans, the one whose folds ended last first."""
    found = []
    for path in (Path(workspace.results) / VERSIONS).glob(f"*/{dataset}/{SETTINGS_RECORD}"):
        settings = read_json(path)
        folds = [item.stat().st_mtime_ns for item in path.parent.glob(f"{params.trainer}__{params.plans}__*/fold_*/{FOLD_RECORD}")]
        if (settings["trainer"], settings["plans"]) == (params.trainer, params.plans):
            found.append((max(folds, default=0), path.stat().st_mtime_ns, path.parent.parent.name))
    return [model for *_, model in sorted(found, reverse=True)]


def _trained(params: FindBestParams, workspace: Workspace, dataset: str, model: str) -> Trained:
    root = workspace.model_root(model) / dataset
    if not (root / SETTINGS_RECORD).is_file():
        known = ", ".join(path.parent.parent.name for path in (root.parent.parent).glob(f"*/{dataset}/{SETTINGS_RECORD}")) or "none"
        raise ConfigError(field="model", value=model, problem=f"not a trained model of {dataset}, which has: {known}")
    settings = read_json(root / SETTINGS_RECORD)
    settings.pop("schema", None)  # of the file, not of the training
    for name in ("trainer", "plans"):
        if settings[name] != getattr(params, name):
            raise ConfigError(
                field=name, value=getattr(params, name), problem=f"model {model} was trained with {settings[name]!r}", fix="name that one"
            )
    version = settings["version"]
    preprocessed = workspace.preprocessed_root(version) / dataset
    if not preprocessed.is_dir():
        raise ConfigError(field="model", value=model, problem=f"its preprocessed version {version} is gone", fix="train on the current one")
    if seen := trained_on_withdrawn(root):
        raise ConfigError(
            field="model", value=model, problem=f"{listed(seen)} withdrawn since it was trained on", fix="train on a new version"
        )
    require_none_withdrawn(preprocessed)
    if len(set(params.folds)) != len(params.folds):
        raise ConfigError(field="folds", value=params.folds, problem="name each fold once")
    known_configurations = read_json_or_empty(preprocessed / f"{params.plans}.json").get("configurations", {})
    prefix = f"{params.trainer}__{params.plans}__"
    on_all = [name for name in known_configurations if (root / f"{prefix}{name}" / f"fold_{ALL}").is_dir()]
    numbered = {path.parent.name.removeprefix(prefix) for path in root.glob(f"{prefix}*/fold_[0-9]*")}
    if not numbered and on_all and params.folds != [ALL]:
        raise OnlyFoldAll(
            f"model={model!r}: only fold 'all' is trained ({', '.join(on_all)}), and it has no cross-validation to select by; train folds "
            f"{', '.join(map(str, params.folds))} too, or take it as it is with promote='always' (its card says that it was not validated)"
        )
    present = on_all if params.folds == [ALL] else numbered
    configurations = params.configurations or [name for name in known_configurations if name in present]
    for name in configurations:
        configuration_entry(preprocessed, params.plans, name)
    if len(set(configurations)) != len(configurations):
        raise ConfigError(field="configurations", value=params.configurations, problem="name each configuration once")
    if not configurations:
        what = "fold 'all' of no configuration is trained" if params.folds == [ALL] else "no configuration is trained"
        raise ConfigError(field="model", value=model, problem=what, fix="run TrainFoldOperator first")
    if params.folds == [ALL] and len(configurations) > 1:
        raise ConfigError(
            field="configurations",
            value=configurations,
            problem="fold 'all' has no cross-validation, so nothing says which of them is the best",
            fix="name one",
        )
    trained = Trained(
        dataset=dataset,
        model=model,
        version=version,
        trainer=params.trainer,
        plans=params.plans,
        root=root,
        preprocessed=preprocessed,
        configurations=tuple(configurations),
        folds=tuple(sorted(params.folds, key=str if params.folds == [ALL] else int)),
        settings=settings,
    )
    for name in trained.with_previous_stages():
        trained.validation_cases(name)  # a fold that the splits do not have is said here, not as one that is not trained
    return trained


def _not_repairable(trained: Trained, configuration: str, fold: int | str) -> str | None:
    """Why a new validation would not complete a fold, None where it would: its final checkpoint is whole and of these inputs."""
    from nnunet_jobs.training import checkpoint

    folder = trained.folder(configuration) / f"fold_{fold}"
    final = folder / FINAL_CHECKPOINT
    if not final.is_file():
        return "its training has not ended"
    record = read_json_or_empty(folder / FOLD_RECORD) if (folder / FOLD_RECORD).is_file() else {}
    if record and not unchanged(final, record["files"][FINAL_CHECKPOINT], always_hash=True):
        return f"{FINAL_CHECKPOINT} has changed since it was verified"
    try:
        data = checkpoint.load(final, mapped=True)
    except checkpoint.UnsafeCheckpoint as error:
        return str(error)
    written_under = data.get("init_args", {}).get(checkpoint.IDENTITY, {})
    expected = fold_identity(trained.model, trained.preprocessed, trained.train_params(configuration, fold))
    if {name: written_under.get(name) for name in expected} != expected:
        return f"{FINAL_CHECKPOINT} belongs to another training, or to other inputs"
    return None
