"""Withdraws cases from the raw dataset, every preprocessed version, models' predictions, and everything that could restore them.

It is not a step of a pipeline; a person runs it by ``python -m nnunet_jobs withdraw`` or ``airflow nnunet dataset withdraw``. The
order makes it repeatable: the tombstones are written first, so that the cases cannot be registered again, and are marked complete
last. If it is interrupted and run again, it completes; until then, registration and preprocessing warn of it.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nnunet_jobs.context import StepContext, acting
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.withdrawal import CaseCopy, WithdrawnPrediction, WithdrawResult
from nnunet_jobs.contract.storage.permissions import with_workspace_umask
from nnunet_jobs.contract.storage.withdrawals import Tombstones, WithdrawParams
from nnunet_jobs.contract.storage.workspace import DATASET_NAME
from nnunet_jobs.dataset import withdraw as raw
from nnunet_jobs.dataset.changes import beat_or_stop
from nnunet_jobs.dataset.staging import Store
from nnunet_jobs.dataset.transfer import recover
from nnunet_jobs.prediction import withdraw as predictions
from nnunet_jobs.preprocessing import withdraw as versions
from nnunet_jobs.registry.promotion import demote
from nnunet_jobs.training import withdraw as models

log = logging.getLogger("nnunet_jobs")


@with_workspace_umask
def run(params: WithdrawParams, context: StepContext) -> dict[str, Any]:
    """Withdraw cases, or only say what would be removed (``dry_run``), or lift a withdrawal (``restore``).

    Returns:
        :class:`~nnunet_jobs.contract.steps.withdrawal.WithdrawResult` as a JSON object.

    Raises:
        ConfigError: The dataset, a case or a group is not known, or was not withdrawn (``restore``).
    """
    dataset = context.workspace.resolve_dataset(params.dataset)
    return _Withdrawal(params=params, context=context, dataset=dataset).run()


class _Withdrawal:
    """Runs one withdrawal."""

    def __init__(self, *, params: WithdrawParams, context: StepContext, dataset: str) -> None:
        self.params, self.context, self.dataset = params, context, dataset
        self.workspace = context.workspace
        self.folder = self.workspace.raw_dataset(dataset)
        match = DATASET_NAME.fullmatch(dataset)
        number = int(match[1]) if match else 0
        self.lock = Path(self.workspace.raw) / ".locks" / f"{number:03d}.lock"
        self.at = datetime.now(UTC).isoformat(timespec="seconds")
        self.by = acting(context)
        self.left: list[str] = []

    def run(self) -> dict[str, Any]:
        with self.context.content_lock(self.lock, what=self.dataset):
            recover(self.folder)
            manifest = self.workspace.manifest(self.dataset)
            stones = Tombstones(self.workspace, self.dataset)
            if self.params.restore:
                return self._restore(stones)
            cases = self._cases(manifest, stones)
            digests = {digest for case in cases for digest in self._stone(case, manifest, stones)["images"]}
            already_done = all(case in stones.cases and stones.cases[case]["complete"] for case in cases) and all(
                stones.group_key(group) in stones.groups for group in self.params.groups
            )
            splits = {case: manifest["cases"][case]["split"] for case in cases if case in manifest["cases"]}
            if not self.params.dry_run:
                self._set_stones(cases, manifest, stones)
                raw.take_out(Store(folder=self.folder), manifest, cases, by=self.by, reason=self.params.reason)
                self.left += raw.forget(self.workspace, self.dataset, stones, cases, beat_or_stop(self.context))
        derived = self._derived(cases)
        if not self.params.dry_run:
            with self.context.content_lock(self.lock, what=self.dataset):
                stones = Tombstones(self.workspace, self.dataset)
                for case in cases:
                    stones.cases[case]["complete"] = not self.left
                stones.save()
        copies = raw.copies_of(self.workspace, digests, but={self.dataset: cases})
        return WithdrawResult(
            dataset=self.dataset,
            cases=cases,
            groups=sorted(self.params.groups),
            dry_run=self.params.dry_run,
            restored=False,
            already_done=already_done,
            splits=splits,
            copies=[CaseCopy(dataset=copy["dataset"], case=copy["case"]) for copy in copies],
            left=self.left,
            **derived,
        ).to_json()

    # --- which ones ---------------------------------------------------------------------------------------------
    def _cases(self, manifest: Mapping[str, Any], stones: Tombstones) -> list[str]:
        """Return the ids of the named cases, directly or by group; also of those withdrawn before, to complete them."""
        known = {*manifest["cases"], *stones.cases}
        for case in self.params.cases:
            if case not in known:
                near = difflib.get_close_matches(case, sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(field="cases", problem=f"{case!r} is not a case of {self.dataset}{hint}")
        found = set(self.params.cases)
        for group in self.params.groups:
            members = {case for case, entry in manifest["cases"].items() if entry["group"] == group}
            members |= {case for case, stone in stones.cases.items() if stone["group"] == stones.group_key(group)}
            if not members and stones.group_key(group) not in stones.groups:
                groups = sorted({entry["group"] for entry in manifest["cases"].values()})
                near = difflib.get_close_matches(group, groups, n=1)
                raise ConfigError(
                    field="groups", problem=f"no case of {self.dataset} is of {group!r}", fix=f"did you mean {near[0]!r}?" if near else None
                )
            found |= members
        return sorted(found)

    def _stone(self, case: str, manifest: Mapping[str, Any], stones: Tombstones) -> dict[str, Any]:
        if case not in manifest["cases"]:
            return stones.cases[case]
        entry = manifest["cases"][case]
        images, labels = raw.file_sizes(self.folder, case, entry, manifest["file_ending"])
        return {
            "at": self.at,
            "by": self.by,
            "reason": self.params.reason,
            "group": stones.group_key(entry["group"]),
            "images": images,
            "labels": labels,
            "complete": False,
        }

    def _set_stones(self, cases: list[str], manifest: Mapping[str, Any], stones: Tombstones) -> None:
        for case in cases:
            stones.cases[case] = {**self._stone(case, manifest, stones), "complete": False}
        for group in self.params.groups:
            stones.groups.setdefault(stones.group_key(group), {"at": self.at, "by": self.by, "reason": self.params.reason})
        stones.save()

    # --- what was made from them --------------------------------------------------------------------------------
    def _derived(self, cases: list[str]) -> dict[str, Any]:
        """Find versions, models and predictions with the cases, and remove the cases from them except with ``--dry-run``."""
        workspace, dry = self.workspace, self.params.dry_run
        lock = Path(workspace.preprocessed) / ".locks" / f"{self.dataset}.lock"
        if dry:
            lost = versions.look(workspace, self.dataset, cases)
        else:
            with self.context.content_lock(lock, what=f"preprocessing of {self.dataset}"):
                lost = versions.take_out(workspace, self.dataset, cases, at=self.at)
        seen = models.models_that_saw(workspace, self.dataset, {item.version: item.cases for item in lost})
        demoted = []
        for model in seen:
            if not dry:
                models.mark(workspace, model, at=self.at)
                if self.params.demote and demote(workspace, model.dataset, model.model, by=self.by.get("triggered_by")):
                    demoted.append(model.model)
        files = self._remove_from_models(cases)
        predicted = predictions.predictions_of(workspace, self.dataset, cases)
        deleting = self.params.predictions and not dry
        if deleting:
            for item in predicted:
                predictions.remove(item)
        return {
            "versions": lost,
            "models": seen,
            "model_files": files,
            "demoted": demoted,
            "predictions": [WithdrawnPrediction(folder=item.folder, cases=list(item.cases), deleted=deleting) for item in predicted],
        }

    def _remove_from_models(self, cases: list[str]) -> int:
        """Remove the cases' predictions from every model of the dataset, since hold-out cases were predicted too."""
        folders = sorted((Path(self.workspace.results) / ".versions").glob(f"[!.]*/{self.dataset}"))
        if self.params.dry_run:
            return sum(len(list(models.files_of(folder, cases))) for folder in folders)
        return sum(models.remove_files(folder, cases) for folder in folders)

    # --- back again ---------------------------------------------------------------------------------------------
    def _restore(self, stones: Tombstones) -> dict[str, Any]:
        """Lift the withdrawal, so that the next registration may bring the cases. Deleted files stay deleted."""
        keys = {stones.group_key(group): group for group in self.params.groups}
        missing = [case for case in self.params.cases if case not in stones.cases]
        missing += [group for key, group in keys.items() if key not in stones.groups]
        if missing:
            raise ConfigError(
                field="cases", problem=f"{', '.join(map(repr, missing))} of {self.dataset} are not withdrawn", fix="nothing to restore"
            )
        cases = sorted({*self.params.cases, *(case for case, stone in stones.cases.items() if stone["group"] in keys)})
        if not self.params.dry_run:
            for case in cases:
                del stones.cases[case]
            for key in keys:
                del stones.groups[key]
            stones.save()
            models.unmark(self.workspace, self.dataset, cases)
        return WithdrawResult(
            dataset=self.dataset, cases=cases, groups=sorted(self.params.groups), dry_run=self.params.dry_run, restored=True
        ).to_json()


def text(result: Mapping[str, Any]) -> str:
    """Format the result for a person."""
    found = WithdrawResult.from_json(result)
    cases, dry = found.cases, found.dry_run
    if found.restored:
        what = "would be restored" if dry else "restored: the next registration may bring them from their source again"
        return f"{found.dataset}: {len(cases)} cases ({', '.join(cases) or 'none now'}) {what}"
    verb = "would be withdrawn" if dry else "were withdrawn before, and again" if found.already_done else "withdrawn"
    lines = [f"{found.dataset}: {len(cases)} cases {verb}: {', '.join(cases) or 'none is registered now; later ones stay out'}"]
    lines += [f"  {case} was in {split}" for case, split in found.splits.items()]
    lines += [f"  version {item.version}: {len(item.cases)} cases, {item.files} files" for item in found.versions]
    lines += [f"  {item.folder}: predictions of {', '.join(item.cases)} {_fate(item, dry)}" for item in found.predictions]
    lines.append(f"  {found.model_files} predictions in model folders")
    lines.append(f"Models trained on them: {len(found.models) or 'none'}")
    lines += [f"  {model}" for model in found.models]
    lines += [f"  {model} was demoted" for model in found.demoted]
    lines += [f"WARNING: {copy.case} of {copy.dataset} has the same image; withdraw it too?" for copy in found.copies]
    lines += [f"STILL TO DO: {item}" for item in found.left]
    lines.append("The source itself, backups and exported predictions are not deleted: remove the cases there too.")
    return "\n".join(lines)


def _fate(item: WithdrawnPrediction, dry: bool) -> str:
    return "deleted" if item.deleted else "found" if dry else "stay; --predictions deletes them"
