"""Requires every fold that is selected from to be complete, and repairs a validation that is missing."""

from __future__ import annotations

import logging

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import FindBestParams
from nnunet_jobs.contract.storage.workspace import FINAL_CHECKPOINT
from nnunet_jobs.selection.trained import Trained
from nnunet_jobs.training.fold import fold_identity, read_json_or_empty
from nnunet_jobs.training.fold_record import FOLD_RECORD, unchanged

log = logging.getLogger("nnunet_jobs")


def require_complete(trained: Trained, params: FindBestParams, context: StepContext) -> None:
    """Require every needed fold to be complete; with ``repair``, run a missing validation from a verified final checkpoint.

    Raises:
        ConfigError: Folds are not complete; the message lists configuration, fold and reason of each.
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


def _not_repairable(trained: Trained, configuration: str, fold: int | str) -> str | None:
    """Say why a new validation would not complete a fold; None if its final checkpoint is intact and of these inputs."""
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
