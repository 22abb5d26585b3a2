"""Turns archives and DICOM studies into plain folders of images: archives are unpacked, DICOM series are converted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import RegisterParams
from nnunet_jobs.dataset.archives import unpack as archives
from nnunet_jobs.dataset.own_splits import carry_own_splits
from nnunet_jobs.dataset.sources import recognised
from nnunet_jobs.dicom.extra import dicom_packages
from nnunet_jobs.dicom.mark import holds_dicom


@contextlib.contextmanager
def plain_source(params: RegisterParams, root: Path, context: StepContext, *, dataset: str) -> Iterator[Path]:
    """Yield the folder to list instead of ``root``; remove it afterwards if it was made for this run only.

    Args:
        params: Parameters of the step.
        context: Context of the step.
        root: What ``source`` names, resolved and confined.
        dataset: Full name.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_unpacked(params, root, context))
        if params.layout == "dicom" or (params.layout == "auto" and not recognised(params, folder) and holds_dicom(folder)):
            tree, folder = folder, stack.enter_context(_converted(params, folder, context, dataset))
            carry_own_splits(tree, folder)
        yield folder


def _converted(params: RegisterParams, root: Path, context: StepContext, dataset: str) -> contextlib.AbstractContextManager[Path]:
    with dicom_packages(field="layout", value=params.layout):
        from nnunet_jobs.dataset.dicom_source import converted
    return converted(params, root, context, dataset=dataset)


@contextlib.contextmanager
def _unpacked(params: RegisterParams, root: Path, context: StepContext) -> Iterator[Path]:
    """Yield an archive's content in a scratch folder, or the folder itself.

    The scratch folder lies beside the dataset, so that files move by link, and has one name for each id, so that the next run removes
    what a killed run left.
    """
    scratch = Path(os.path.realpath(context.workspace.raw)) / f".{params.dataset_id:03d}.source"
    if scratch.exists():
        shutil.rmtree(scratch)
    if not os.path.exists(root):
        raise ConfigError(field="source", value=params.source, problem="no such folder or archive")
    if not os.path.isfile(root):
        yield root
        return
    if not archives.named_as_one(root):
        raise ConfigError(
            field="source", value=params.source, problem="is a file", fix=f"name a folder, or an archive ({', '.join(archives.ENDINGS)})"
        )
    try:
        yield archives.unpack(root, scratch, context=context)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
