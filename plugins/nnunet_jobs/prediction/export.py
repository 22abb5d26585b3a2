"""Turns logits into files: nnU-Net's conversion, postprocessing, volumes, and outputs that are complete once they exist."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.contract.failure import Bug, DataError, DiskFull
from nnunet_jobs.contract.storage.files import sha256_file, sync_directory, sync_file
from nnunet_jobs.contract.storage.predictions import PREDICTIONS, SHEET, TABLE
from nnunet_jobs.prediction.labelling import can_separate, label_by_class
from nnunet_jobs.prediction.network import StageNetwork

_FUNCTIONS = ("remove_all_but_largest_component_from_segmentation",)


def to_segmentation(
    network: StageNetwork, logits: Any, properties: dict[str, Any], *, probabilities: bool, threads: int, linear: bool = False
) -> tuple[Any, Any]:
    """Resample logits to the image's grid and choose labels. ``linear``: see :func:`label_by_class`; not for probabilities.

    Returns:
        (segmentation, probabilities or None); (z, y, x) and (head, z, y, x) in the reader's axis order.
    """
    if not probabilities and can_separate(network):
        return label_by_class(network, logits.numpy(), properties, threads=threads, linear=linear), None
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    # as an array, as in nnU-Net, since resampling treats tensors differently
    result = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.numpy(),
        network.plans_manager,
        network.configuration_manager,
        network.label_manager,
        properties,
        return_probabilities=probabilities,
        num_threads_torch=threads,
    )
    return result if probabilities else (result, None)


def average(network: StageNetwork, members: Sequence[Any]) -> tuple[Any, Any]:
    """Return segmentation and mean probabilities of an ensemble, summed in the members' order as ``nnUNetv2_ensemble`` does."""
    mean = members[0].astype(np.float32, copy=True)
    for probabilities in members[1:]:
        mean += probabilities
    mean /= len(members)
    return network.label_manager.convert_probabilities_to_segmentation(mean), mean


def postprocess(segmentation: Any, steps: Sequence[Mapping[str, Any]]) -> Any:
    """Apply the selected postprocessing, in order."""
    from nnunetv2.postprocessing import remove_connected_components

    for step in steps:
        if step["function"] not in _FUNCTIONS:
            raise Bug(f"postprocessing function {step['function']!r} is unknown; known: {', '.join(_FUNCTIONS)}")
        labels = step["labels_or_regions"]
        segmentation = getattr(remove_connected_components, step["function"])(segmentation, labels)
    return segmentation


def write_outputs(
    network: StageNetwork,
    case: str,
    segmentation: Any,
    probabilities: Any,
    properties: dict[str, Any],
    *,
    postprocessing: Sequence[Mapping[str, Any]],
    output: Path,
    scratch: Path,
) -> tuple[dict[str, str], Any]:
    """Write a case's files to a separate folder below ``scratch``, verify them, and rename them into ``output``.

    The segmentation is moved last. Files that nnU-Net's writer puts beside it, such as the JSON file with the spacing of a 3D TIFF,
    are moved too.

    Returns:
        sha256 by file name, and the final segmentation array.

    Raises:
        DiskFull: A file is incomplete and the disk has no room.
        DataError: A file would have the name of one of the folder's own files.
    """
    ending, writer = network.file_ending, network.reader_writer()
    own = scratch / "written"
    fresh_folder(own)
    if probabilities is not None:
        np.savez_compressed(own / f"{case}.npz", probabilities=probabilities)
        (own / f"{case}.pkl").write_bytes(pickle.dumps(properties))  # what nnUNetv2_ensemble expects beside the probabilities
    target = own / f"{case}{ending}"
    writer.write_seg(segmentation, str(target), properties)
    if postprocessing:
        # through a file, as nnUNetv2_apply_postprocessing does: its header is derived from the first file's
        read, read_properties = writer.read_seg(str(target))
        segmentation = postprocess(read[0], postprocessing)
        writer.write_seg(segmentation, str(target), read_properties)
    made = [*sorted(path for path in own.iterdir() if path != target), target]
    taken = [path.name for path in made if path.name in (PREDICTIONS, TABLE, SHEET)]
    if taken:
        raise DataError(f"its file {taken[0]} has the name of the list of all predictions; give the case another id")
    return publish(made, output, voxels=segmentation.size), segmentation


def publish(files: Sequence[Path], output: Path, *, voxels: int) -> dict[str, str]:
    """Verify and sync files, then rename them into ``output`` in the order given. Returns sha256 by name."""
    hashes = {}
    for path in files:
        _require_whole(path, voxels=voxels)
        sync_file(path)
        hashes[path.name] = sha256_file(path)
    for path in files:
        os.replace(path, output / path.name)
    sync_directory(output)
    return hashes


def copy_segmentation(path: Path, folder: Path) -> None:
    """Copy a segmentation into another folder, with the file that holds the spacing of a 3D TIFF."""
    sidecar = path.with_suffix(".json")
    for file in (sidecar, path) if path.suffix in (".tif", ".tiff") and sidecar.is_file() else (path,):
        shutil.copy(file, folder)


def label_voxels(dataset_json: Mapping[str, Any], segmentation: npt.NDArray[Any]) -> dict[str, int]:
    """Return the number of voxels of each label (or region) by name."""
    counts = dict(zip(*(values.tolist() for values in np.unique(segmentation, return_counts=True)), strict=True))
    return {name: sum(counts.get(value, 0) for value in values) for name, values in label_values(dataset_json).items()}


def volumes_ml(voxels: Mapping[str, int], properties: Mapping[str, Any], shape: Sequence[int]) -> dict[str, float]:
    """Return the volume of each label (or region) by name, in millilitres; empty for 2D images, which have none.

    Args:
        voxels: Result of :func:`label_voxels`.
        properties: nnU-Net's properties of the case.
        shape: Shape of the segmentation.
    """
    geometry = properties.get("sitk_stuff", {}).get("spacing")
    if (geometry is not None and len(geometry) != 3) or len(shape) != 3 or (geometry is None and shape[0] == 1):
        return {}
    millilitres = float(np.prod(np.asarray(properties["spacing"], dtype=np.float64))) / 1000.0
    return {name: round(count * millilitres, 6) for name, count in voxels.items()}


def label_values(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the values of foreground labels and regions by name; background and the ignore label are left out."""
    return {
        name: tuple(int(item) for item in value) if isinstance(value, list | tuple) else (int(value),)
        for name, value in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }


def case_dice(network: StageNetwork, label: Path, prediction: Path) -> tuple[dict[str, float | None], list[str]]:
    """Compare the prediction of one case with its reference segmentation.

    Returns:
        Dice by label name, None if neither has a voxel of it; and the names of the labels that the reference has.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    manager = network.label_manager
    keys = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    metrics = compute_metrics(str(label), str(prediction), network.reader_writer(), keys, manager.ignore_label)["metrics"]
    by_values = {tuple(key) if isinstance(key, list | tuple) else (key,): values for key, values in metrics.items()}
    named: dict[str, float | None] = {}
    existing = []
    for name, values in label_values(network.dataset_json).items():
        found = by_values.get(values, {"Dice": float("nan"), "n_ref": 0})
        named[name] = None if np.isnan(found["Dice"]) else float(found["Dice"])
        if found["n_ref"]:
            existing.append(name)
    return named, existing


def fresh_folder(path: Path) -> None:
    """Make an empty folder; remove what a killed attempt left there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _require_whole(path: Path, *, voxels: int) -> None:
    """Read a gzip stream back to its checksum, since ITK's writer does not report a full disk."""
    whole = path.stat().st_size > 0
    if whole and path.name.endswith(".nii.gz"):
        stream, length = zlib.decompressobj(wbits=31), 0
        try:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    length += len(stream.decompress(chunk))
            whole = stream.eof and length >= voxels
        except zlib.error:
            whole = False
    if not whole:
        free = shutil.disk_usage(path.parent).free
        if free < (16 << 20):
            raise DiskFull(f"{path.name}: could not be written completely, {free >> 20} MiB are free; make room in the output folder")
        raise Bug(f"{path.name}: could not be written completely")
