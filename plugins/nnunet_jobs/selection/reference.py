"""Describes a model's training cases in a file beside its card, to check predictions without a reference segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.storage.files import read_json, write_json
from nnunet_jobs.dataset.readers.agreement import voxel_order
from nnunet_jobs.metrics.evaluation import finite
from nnunet_jobs.prediction.preview import voxel_affine
from nnunet_jobs.prediction.quality import REFERENCE, label_range, spacing_range
from nnunet_jobs.selection.compare import Reference
from nnunet_jobs.selection.trained import Trained

SCHEMA = 1


def write_reference(trained: Trained, cv_dice: float | None, context: StepContext) -> Path:
    """Read the reference segmentations of the cases that the folds were validated on, and write ``reference.json``.

    Args:
        cv_dice: Cross-validation Dice of the selected model.
    """
    reference, cases = Reference(trained, context), list(trained.validation_cases(trained.configurations[0]))
    found = _volumes(reference, cases, context)
    labels = {}
    for name in found[0][0] if found else ():
        volumes = [volumes_ml.get(name, 0.0) for _, volumes_ml, _ in found]
        labels[name] = {"present": sum(voxels[name] > 0 for voxels, _, _ in found), "ml": label_range(volumes)}
    fingerprint = read_json(trained.preprocessed / "dataset_fingerprint.json")
    path = trained.root / REFERENCE
    write_json(
        path,
        {
            "schema": SCHEMA,
            "model": trained.model,
            "cases": len(cases),
            "labels": labels,
            "spacing": spacing_range(fingerprint["spacings"]),
            "orders": sorted({order for _, _, order in found if order}),
            "cv_dice": None if cv_dice is None else finite(cv_dice),
        },
    )
    return path


def _volumes(reference: Reference, cases: Sequence[str], context: StepContext) -> list[tuple[dict[str, int], dict[str, float], str]]:
    """Return voxels and ml by label name, and the order of the voxels, for each case."""
    from nnunet_jobs.prediction.export import label_voxels, volumes_ml

    def one(case: str) -> tuple[dict[str, int], dict[str, float], str]:
        segmentation, properties = reference.reader_writer().read_seg(str(reference.path(case)))
        voxels = label_voxels(reference.dataset_json, segmentation[0])
        context.beat()
        context.check_stop()
        return voxels, volumes_ml(voxels, properties, segmentation[0].shape), voxel_order(voxel_affine(properties))

    with ThreadPoolExecutor(max_workers=max(1, context.cpus)) as pool:
        return list(pool.map(one, cases))
