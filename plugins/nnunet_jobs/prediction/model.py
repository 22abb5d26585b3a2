"""Resolves a model card once to the files of an immutable model, and checks each file against the card."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.storage.files import content_hash, sha256_file
from nnunet_jobs.contract.storage.withdrawals import listed, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT, Workspace

log = logging.getLogger("nnunet_jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One configuration's folds: a folder in nnU-Net's layout.

    ``previous`` is the stage whose segmentation a cascade needs as input. ``further_folds`` predict only on request.
    """

    folder: Path
    trainer: str
    plans: str
    configuration: str
    folds: tuple[int | str, ...]
    previous: Stage | None = None
    further_folds: tuple[int | str, ...] = ()

    def chain(self) -> tuple[Stage, ...]:
        """Return the stages in the order in which they run."""
        return (*self.previous.chain(), self) if self.previous else (self,)

    def checkpoints(self) -> tuple[Path, ...]:
        """Return the folds' final checkpoints."""
        return tuple(self.folder / f"fold_{fold}" / FINAL_CHECKPOINT for fold in self.folds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedModel:
    """A selected model: one stage, or several whose probabilities are averaged, and the postprocessing of the result.

    Attributes:
        hash: Hash of everything that the predictions depend on.
        root: The model's DatasetXXX_Name folder.
        files: SHA-256 by path relative to ``root``; listed files are verified when they are loaded.
        postprocessing: Steps ``{"function", "labels_or_regions"}`` in order, from ``postprocessing.json``.
    """

    dataset: str
    model: str
    hash: str
    root: Path
    members: tuple[Stage, ...]
    postprocessing: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, str]

    def stages(self) -> tuple[Stage, ...]:
        """Return every stage once, in running order."""
        return tuple(dict.fromkeys(stage for member in self.members for stage in member.chain()))

    def verify(self, path: Path) -> None:
        """Compare a file with the card.

        Raises:
            DataError: It is missing, or its bytes differ from those that were selected.
        """
        name = path.relative_to(self.root).as_posix()
        expected = self.files.get(name)
        if expected is None:
            raise DataError(f"{name}: not listed in the card of model {self.model}; run FindBestConfigOperator for these folds")
        if not path.is_file():
            raise DataError(f"{name}: missing from model {self.model}; restore it or train the fold again")
        if sha256_file(path) != expected:
            raise DataError(f"{name}: differs from what the card of model {self.model} lists; the file is damaged or was replaced")

    def with_folds(self, folds: Sequence[int | str] | None) -> SelectedModel:
        """Return the same model, restricted to some folds.

        Raises:
            ConfigError: The model was selected without one of them.
        """
        if folds is None:
            return self
        wanted = tuple(int(fold) if str(fold).isdigit() else fold for fold in folds)
        if not wanted:
            raise ConfigError(field="folds", value=[], problem="name at least one fold, or leave it empty for all of the model's")

        def restricted(stage: Stage) -> Stage:
            known = (*stage.folds, *stage.further_folds)
            missing = [fold for fold in wanted if fold not in known]
            if missing:
                raise ConfigError(
                    field="folds",
                    value=list(wanted),
                    problem=f"the card of model {self.model} has folds {list(known)} of {stage.configuration}",
                    fix="name some of these, or run FindBestConfigOperator again, which adds fold 'all' where it is trained",
                )
            return replace(stage, folds=wanted, previous=restricted(stage.previous) if stage.previous else None)

        return replace(self, members=tuple(restricted(member) for member in self.members))


def resolve_model(workspace: Workspace, dataset: str, model: str | None) -> SelectedModel:
    """Return the named model, or the champion: its link is read once, so a promotion meanwhile changes nothing.

    Raises:
        ConfigError: Nothing is promoted, or the model has no card.
    """
    name = model or workspace.champion(dataset)
    if name is None:
        known = ", ".join(found for found, _ in workspace.model_cards(dataset)) or "none"
        raise ConfigError(
            field="model",
            problem=f"no model of {dataset} is promoted (selected ones: {known})",
            fix="promote one with FindBestConfigOperator or name one",
        )
    card = workspace.model_card(dataset, name)
    root = workspace.model_root(name) / dataset
    if seen := trained_on_withdrawn(root):
        log.warning("model %s: %s withdrawn since it was trained on; train another and promote that", name, listed(seen))
    return model_from_card(card, root=root, model=name)


def model_from_card(card: Mapping[str, Any], *, root: Path, model: str) -> SelectedModel:
    """Return the model that a card describes; ``root`` is the folder that holds the card."""
    selection = card["selection"]
    return SelectedModel(
        dataset=str(card["dataset"]),
        model=model,
        hash=str(card["hash"]),
        root=root,
        members=tuple(_stage(member, root) for member in selection["members"]),
        postprocessing=tuple(selection["postprocessing"]),
        files=dict(card["files"]),
    )


def selection_hash(selection: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return the hash of a selected model: its members, postprocessing, and the files that predictions depend on."""
    return content_hash({"selection": dict(selection), "files": dict(files)}, length=32)


def _stage(member: Mapping[str, Any], root: Path) -> Stage:
    previous = member.get("previous_stage")
    return Stage(
        folder=root / f"{member['trainer']}__{member['plans']}__{member['configuration']}",
        trainer=member["trainer"],
        plans=member["plans"],
        configuration=member["configuration"],
        folds=tuple(member["folds"]),
        further_folds=tuple(member.get("further_folds", ())),
        previous=_stage(previous, root) if previous else None,
    )
