"""Finds the weights for fine-tuning, and loads those that fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import TrainParams
from nnunet_jobs.contract.storage.files import sha256_file
from nnunet_jobs.contract.storage.withdrawals import listed, trained_on_withdrawn
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.training import checkpoint

log = logging.getLogger("nnunet_jobs.training")
_HEADS = ".seg_layers."
_MOST = 0.5  # share of the weights; with less, training starts almost from scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """The weights to start from. ``identity`` is part of the new model's name."""

    path: Path
    identity: str


def find(params: TrainParams, workspace: Workspace) -> Pretrained | None:
    """Find the checkpoint that ``params.pretrained`` means: a file, or the matching fold of a model of this workspace.

    The same fold is used, so that no validation case was trained on before; else ``fold_all``.

    Raises:
        ConfigError: The file or model does not exist, or the model does not have this configuration and fold, or has
            seen withdrawn cases.
    """
    if params.pretrained is None:
        return None
    if "/" in params.pretrained:
        path = workspace.confine_input(params.pretrained, field="pretrained")
        if not path.is_file():
            raise _refused(params.pretrained, "no such file", "name a checkpoint_final.pth or a model id")
        _require_consent(params, path)
        return Pretrained(path=path, identity=sha256_file(path))
    root = workspace.model_root(params.pretrained)
    trained = sorted(root.glob(f"*/*__*__{params.configuration}/fold_*/{checkpoint.FINAL}"))
    for fold in (params.fold, "all"):
        for path in trained:
            if path.parent.name == f"fold_{fold}":
                _require_consent(params, path)
                if fold != params.fold:
                    log.warning("fine-tuning from fold 'all': Dice is too good if a validation case was among its cases")
                return Pretrained(path=path, identity=params.pretrained)
    folds = ", ".join(path.parent.name for path in trained) or "none"
    problem = f"no fold {params.fold} or 'all' of {params.configuration} in {root} (found: {folds})"
    raise _refused(params.pretrained, problem, "name a model that has it, or a checkpoint file")


def _refused(value: Path | str | None, problem: str, fix: str) -> ConfigError:
    return ConfigError(field="pretrained", value=str(value), problem=problem, fix=fix)


def _require_consent(params: TrainParams, checkpoint_path: Path) -> None:
    """Refuse weights of a model that has seen withdrawn cases, since the new model would have seen them too."""
    for folder in list(checkpoint_path.parents)[:3]:  # fold, configuration, dataset
        if seen := trained_on_withdrawn(folder):
            raise _refused(params.pretrained, f"{listed(seen)} withdrawn since that model was trained on", "name another")


def load_into(trainer: Any, pretrained: Pretrained) -> None:
    """Load all weights that fit into an initialized trainer; the others are logged and start from random values.

    With equal labels and architecture that is the full state, segmentation layers included. With other labels, the
    segmentation layers have another meaning, so they start from random values even if their shape fits.

    Raises:
        ConfigError: The checkpoint cannot be trusted, or none of its convolutions fits; norms and biases alone are not
            useful.
    """
    try:
        data = checkpoint.load(pretrained.path, mapped=True)
    except checkpoint.UnreadableCheckpoint:
        raise  # the storage or the memory of this host, so a retry may succeed
    except checkpoint.UnsafeCheckpoint as error:
        raise _refused(pretrained.path, str(error), "name an undamaged nnU-Net checkpoint") from error
    network = trainer.network.module if trainer.is_ddp else trainer.network
    network = getattr(network, "_orig_mod", network)
    own: Mapping[str, Any] = network.state_dict()
    weights = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in data["network_weights"].items()}
    labels = data.get("init_args", {}).get("dataset_json", {}).get("labels")
    same_labels = labels == trainer.dataset_json["labels"]
    fits = {
        name: weights[name]
        for name, value in own.items()
        if name in weights and weights[name].shape == value.shape and (same_labels or _HEADS not in name)
    }
    kernels = {name for name, value in own.items() if value.dim() > 1 and _HEADS not in name}
    if not fits or (kernels and not kernels & set(fits)):
        only = f"only {len(fits)} norms and biases" if fits else "nothing"
        kind = "convolution" if any(own[name].dim() > 2 for name in kernels) else "layer"
        problem = f"of its weights {only} would fit this network of {trainer.configuration_name}, and no {kind}"
        raise _refused(pretrained.path, problem, "choose a model of the same plans and configuration")
    fresh = sorted(set(own) - set(fits))
    network.load_state_dict({**own, **fits})
    share = sum(int(own[name].numel()) for name in fits) / sum(int(value.numel()) for value in own.values())
    trainer.print_to_log_file(
        f"Fine-tuning: {share:.1%} of the weights loaded ({len(fits)} of {len(own)} tensors) from {pretrained.path}",
        also_print_to_console=True,
    )
    log.log(logging.INFO if share > _MOST else logging.WARNING, "fine-tuning begins with %.1f %% of the weights loaded", 100 * share)
    if fresh:
        why = "they do not fit" if same_labels else "labels differ, or they do not fit"
        log.info("start fresh because %s: %s", why, ", ".join(fresh))
