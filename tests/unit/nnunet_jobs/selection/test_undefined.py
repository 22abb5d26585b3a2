"""Labels that occur nowhere: Dice is undefined, says so, and means, choice and promotion are over the labels that exist."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.predictions import mean_dice
from nnunet_jobs.training.fold_record import summary_dice
from nnunet_jobs.training.run import epochs_without_better, smoothed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SHAPE = (8, 10, 12)


def volume(**boxes: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Boxes ``l1=(start, stop)`` of label 1 and so on, along the last axis."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for name, (start, stop) in boxes.items():
        array[2:6, 2:8, start:stop] = int(name[1:])
    return array


def write(folder: Path, cases: Mapping[str, np.ndarray[Any, Any]]) -> list[Path]:
    import SimpleITK

    folder.mkdir(parents=True)
    for case, array in cases.items():
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(folder / f"{case}.nii.gz"))
    return [folder / f"{case}.nii.gz" for case in cases]


def summary_of(root: Path, references: Mapping[str, Any], predictions: Mapping[str, Any], labels: list[Any]) -> dict[str, Any]:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from nnunet_jobs.metrics.evaluation import summarise

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return summarise(
            write(root / "reference", references), write(root / "prediction", predictions), root / "summary.json",
            reader_writer=SimpleITKIO, labels=labels, ignore_label=None, threads=1,
        )  # fmt: skip


def test_the_mean_is_over_the_labels_that_some_reference_has(tmp_path: Path) -> None:
    truth = {"a": volume(l1=(0, 4), l2=(4, 8)), "b": volume(l1=(0, 4))}
    good = {"a": volume(l1=(0, 4), l2=(4, 8), l3=(11, 12)), "b": volume(l1=(0, 4))}  # perfect but for a voxel row of label 3
    bad = {"a": volume(l1=(0, 2), l2=(4, 6)), "b": volume(l1=(0, 2))}  # half of everything, nothing of label 3
    names = {"background": 0, "one": 1, "two": [2], "never": [3]}
    found = {name: summary_of(tmp_path / name, truth, what, [1, 2, 3]) for name, what in (("good", good), ("bad", bad))}
    read = {name: summary_dice(read_json(tmp_path / name / "summary.json"), names) for name in found}
    assert read["good"] == (1.0, {"one": 1.0, "two": 1.0, "never": None})
    assert read["bad"] == (pytest.approx(2 / 3), {"one": pytest.approx(2 / 3), "two": pytest.approx(2 / 3), "never": None})
    assert found["good"]["mean"][3]["FP"] == 12, "what was painted of it is still counted"
    assert math.isnan(found["bad"]["mean"][3]["IoU"])


def test_without_any_label_in_any_reference_dice_is_undefined(tmp_path: Path) -> None:
    summary_of(tmp_path, {"a": volume()}, {"a": volume(l1=(0, 3))}, [1, 2])
    assert summary_dice(read_json(tmp_path / "summary.json"), {"one": 1, "two": 2}) == (None, {"one": None, "two": None})


def test_the_better_candidate_is_chosen_although_a_label_occurs_nowhere(tmp_path: Path) -> None:
    from nnunet_jobs.selection.compare import Candidate, best

    truth = {"a": volume(l1=(0, 4), l2=(4, 8))}
    candidates = []
    for name, prediction in (("worse", volume(l1=(0, 2), l2=(4, 8))), ("better", volume(l1=(0, 4), l2=(4, 8), l3=(10, 11)))):
        summary = summary_of(tmp_path / name, truth, {"a": prediction}, [1, 2, 3])
        candidates.append(Candidate(name=name, configurations=(name,), folder=tmp_path, cases=("a",), summary=summary))
    assert best(candidates).name == "better"
    assert candidates[0].dice == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("keys", [("1", "2"), ("(1,)", "(2, 1)")])
def test_a_list_of_one_value_is_found_however_nnunet_wrote_it(keys: tuple[str, str]) -> None:
    summary = {"foreground_mean": {"Dice": 0.5}, "mean": {keys[0]: {"Dice": 0.25}, keys[1]: {"Dice": 0.75}}}
    second: Any = [2] if keys[1] == "2" else [1, 2]
    assert summary_dice(summary, {"background": 0, "a": [1], "b": second, "ignore": 3})[1] == {"a": 0.25, "b": 0.75}


def test_the_holdout_mean_is_over_the_labels_that_its_references_have() -> None:
    cases = [
        {"dice": {"a": 0.8, "b": None, "never": 0.0}, "reference_labels": ["a"]},  # a few voxels of "never" were painted
        {"dice": {"a": 0.6, "b": 0.4, "never": None}, "reference_labels": ["a", "b"]},
    ]
    assert mean_dice(cases) == {"cases": 2, "mean": pytest.approx(0.55), "per_label": {"a": pytest.approx(0.7), "b": 0.4, "never": None}}
    old = [{"dice": {"a": 0.8, "b": 0.0}}]
    assert mean_dice(old) == {"cases": 1, "mean": 0.4, "per_label": {"a": 0.8, "b": 0.0}}
    assert mean_dice([{"dice": {"a": None}, "reference_labels": []}]) == {"cases": 1, "mean": None, "per_label": {"a": None}}
    assert mean_dice([]) is None


def test_an_epoch_without_labels_neither_ends_nor_blinds_the_training() -> None:
    nan = math.nan
    assert repr(smoothed([nan, 0.5, nan, 1.0])) == repr([nan, 0.5, 0.5, 0.5 * 0.9 + 0.1 * 1.0])
    assert epochs_without_better([]) == epochs_without_better([nan, nan, nan]) == 0
    assert epochs_without_better([nan, nan, 0.5, 0.6]) == 0, "the first undefined epoch is not the best one"
    assert epochs_without_better([0.5, 0.6, 0.5, nan]) == 2


def test_nnunets_own_smoothed_dice_goes_on_after_an_epoch_without_labels(tmp_path: Path) -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_jobs.training.trainer import Layer

    trainer: Any = object.__new__(type("nnUNetTrainer", (Layer, nnUNetTrainer), {}))
    trainer.logger, trainer.is_ddp = MetaLogger(str(tmp_path), False), False
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for epoch, hits in enumerate((0, 4, 0, 4)):
            trainer.current_epoch = epoch
            counts = {"tp_hard": np.array([hits, 0]), "fp_hard": np.array([hits, 0]), "fn_hard": np.array([0, 0])}
            trainer.on_validation_epoch_end([{"loss": np.array(0.5), **counts}])
    ema = trainer.logger.get_value("ema_fg_dice", None)
    assert math.isnan(ema[0])
    assert ema[1:] == [pytest.approx(2 / 3)] * 3
