"""Metrics of files: nnU-Net's readers and regions, means that say how many cases they are over, and the file they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.metrics.cases import case_metrics, mean_metrics, named_labels, tolerances, write_metrics
from nnunet_jobs.metrics.surfaces import IMPLEMENTATION

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SHAPE = (8, 10, 12)


def volume(**boxes: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Boxes ``l1=(start, stop)`` of label 1 and so on, along the last axis."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for name, (start, stop) in boxes.items():
        array[2:6, 2:8, start:stop] = int(name[1:])
    return array


def write(path: Path, array: Any, spacing: Sequence[float]) -> Path:
    import SimpleITK

    path.parent.mkdir(exist_ok=True, parents=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))
    return path


def reader() -> Any:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    return SimpleITKIO()


def test_a_files_spacing_follows_its_axes(tmp_path: Path) -> None:
    reference = write(tmp_path / "reference.nii.gz", volume(l1=(1, 5), l2=(5, 8)), (3.0, 0.5, 0.8))
    prediction = write(tmp_path / "prediction.nii.gz", volume(l1=(1, 4), l2=(4, 8)), (3.0, 0.5, 0.8))
    labels = named_labels([(1, 2), (2,)], {"background": 0, "all": [1, 2], "core": 2})
    found = case_metrics(reference, prediction, reader_writer=reader(), labels=labels, tolerance_mm={"all": 1, "core": 3})
    assert (found["all"]["dice"], found["all"]["nsd"]) == (1, 1)
    assert found["core"]["hd95_mm"] == pytest.approx(3), "the arrays' last axis is the files' first"
    assert found["core"]["nsd"] == 1
    assert found["core"]["volume_difference_ml"] == pytest.approx(24 * 1.2 / 1000)


def test_a_picture_has_contours_and_no_volume(tmp_path: Path) -> None:
    arrays = volume(l1=(1, 5))[3], volume(l1=(3, 7))[3]
    paths = [write(tmp_path / f"{number}.nii.gz", array, (0.5, 0.5)) for number, array in enumerate(arrays)]
    found = case_metrics(*paths, reader_writer=reader(), labels={"one": 1}, tolerance_mm={"one": 1.0})["one"]
    assert found["hd95_mm"] == 1.0
    assert found["nsd"] == 1
    assert found["volume_difference_ml"] is None


def test_means_say_how_many_cases_they_are_over(tmp_path: Path) -> None:
    truth = {"a": volume(l1=(0, 4)), "b": volume(l1=(0, 4), l2=(4, 6)), "c": volume()}
    found = {"a": volume(l1=(0, 4)), "b": volume(l1=(0, 3)), "c": volume(l3=(1, 2))}
    pairs = {
        case: (write(tmp_path / "r" / f"{case}.nii.gz", truth[case], (1, 1, 1)), write(tmp_path / f"{case}.nii.gz", found[case], (1, 1, 1)))
        for case in truth
    }
    labels = {"one": 1, "two": 2, "three": 3}
    seen: list[None] = []
    report = write_metrics(
        pairs, tmp_path / "metrics.json", reader_writer=reader, labels=labels, tolerance_mm=tolerances({"two": 2.5}, [*labels], 1.0),
        ignore_label=None, threads=2, on_case=lambda: seen.append(None),
    )  # fmt: skip
    assert report == read_json(tmp_path / "metrics.json")
    assert len(seen) == 3
    assert report["implementation"] == IMPLEMENTATION
    assert report["tolerance_mm"] == {"one": 1.0, "two": 2.5, "three": 1.0}
    one, two, three = report["per_label"].values()
    assert (one["both"], one["missed"], one["invented"]) == (2, 0, 0)
    assert one["hd95_mm"] == 0.5
    assert one["dice"] == pytest.approx((1 + 6 / 7) / 2)
    assert (two["dice"], two["nsd"], two["hd95_mm"], two["missed"]) == (0, 0, None, 1)
    assert (three["dice"], three["nsd"], three["hd95_mm"], three["invented"]) == (None, None, None, 1)
    assert report["foreground"]["dice"] == pytest.approx(one["dice"] / 2), "a label that no reference has is in no mean"
    assert report["foreground"]["hd95_mm"] == 0.5


def test_dice_is_nnunets(tmp_path: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    random = np.random.default_rng(3)
    paths = [write(tmp_path / f"{name}.nii.gz", random.integers(0, 4, SHAPE, dtype=np.uint8), (1, 1, 2)) for name in ("r", "p")]
    labels = {"all": (1, 2), "core": (2,), "never": (5,)}
    theirs = compute_metrics(str(paths[0]), str(paths[1]), reader(), list(labels.values()), 3)["metrics"]
    found = case_metrics(*paths, reader_writer=reader(), labels=labels, tolerance_mm=dict.fromkeys(labels, 1.0), ignore_label=3)
    for name, label in labels.items():
        expected = theirs[label]["Dice"]
        assert found[name]["dice"] == (None if np.isnan(expected) else pytest.approx(expected))


def test_a_comparison_can_be_stopped_between_cases(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", volume(l1=(0, 4)), (1, 1, 1))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_metrics(
            dict.fromkeys("abc", (path, path)), tmp_path / "metrics.json", reader_writer=reader, labels={"one": 1},
            tolerance_mm={"one": 1.0}, ignore_label=None, threads=1, on_case=stop,
        )  # fmt: skip
    assert not (tmp_path / "metrics.json").exists()


def test_without_cases_there_is_nothing_to_average() -> None:
    assert mean_metrics([]) == {"per_label": {}, "foreground": {}}
