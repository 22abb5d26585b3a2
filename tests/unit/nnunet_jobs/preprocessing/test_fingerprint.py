"""The fingerprint: nnU-Net's numbers from what is remembered of each case."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nnunet_jobs.contract.failure import DataError
from nnunet_jobs.preprocessing import fingerprint
from nnunet_jobs.preprocessing.fingerprint import CaseFingerprint, FingerprintCache, aggregate, analyse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fewer_intensities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 1e5)


def volume(seed: int, *, channels: int = 2, empty: bool = False, integers: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = np.zeros((channels, 12, 14, 10), np.float32)
    inside = images[:, 2:11, 1:13, 3:9]
    inside[:] = rng.integers(-50, 50, inside.shape) if integers else rng.normal(100, 40, inside.shape)
    label = np.zeros((1, 12, 14, 10), np.float32)
    if not empty:
        label[0, 4:8, 5 : 6 + seed % 5, 4:7] = 1 + seed % 2
    return images, label


def nnunet(images: np.ndarray, label: np.ndarray, draw: int) -> tuple[tuple[int, ...], list[np.ndarray], float]:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    cropped, cropped_label, _ = crop_to_nonzero(images, label.copy())
    drawn, _ = DatasetFingerprintExtractor.collect_foreground_intensities(cropped_label, cropped, num_samples=draw)
    return cropped.shape[1:], drawn, float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:]))


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("integers", [False, True])
def test_the_sum_is_nnunets_to_the_last_digit(empty: bool, integers: bool) -> None:
    volumes = [volume(seed, integers=integers, empty=empty and seed == 3) for seed in range(7)]
    draw = fingerprint.intensities_per_case(7)
    with ThreadPoolExecutor(2) as pool:
        found = aggregate([analyse(*each, (1.0, 1.0, 1.0), draw=draw) for each in volumes], pool=pool)
    theirs = [nnunet(*each, draw) for each in volumes]
    assert found["shapes_after_crop"] == [list(shape) for shape, _, _ in theirs]
    assert found["median_relative_size_after_cropping"] == np.median([size for _, _, size in theirs])
    for channel in range(2):
        values = np.concatenate([drawn[channel] for _, drawn, _ in theirs])
        low, median, high = np.percentile(values, np.array((0.5, 50.0, 99.5)))
        assert found["foreground_intensity_properties_per_channel"][str(channel)] == {
            "mean": float(np.mean(values)),
            "median": float(median),
            "std": float(np.std(values)),
            "min": float(np.min(values)),
            "max": float(np.max(values)),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }


def test_a_remembered_draw_gives_the_same_sum_as_the_whole_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = [volume(seed) for seed in range(4)]
    monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 4 * 11)
    whole = [analyse(*each, (1.0, 1.0, 1.0), draw=11) for each in volumes]
    monkeypatch.setattr(fingerprint, "REMEMBERED_INTENSITIES", 1)
    drawn = [analyse(*each, (1.0, 1.0, 1.0), draw=11) for each in volumes]
    with ThreadPoolExecutor(2) as pool:
        assert aggregate(drawn, pool=pool) == aggregate(whole, pool=pool)
        monkeypatch.setattr(fingerprint, "INTENSITIES_PER_DATASET", 4 * 9)  # one more case would change the draw like this
        assert aggregate(drawn, pool=pool)["shapes_after_crop"] == [list(case.shape) for case in whole]
    assert all(case.draw == 11 and case.usable(11) and not case.usable(9) for case in drawn)
    assert all(case.draw is None and case.usable(9) for case in whole)


def test_an_image_of_zeros_is_kept_whole() -> None:
    images, label = np.zeros((1, 4, 5, 6), np.float32), np.ones((1, 4, 5, 6), np.float32)
    assert analyse(images, label, (1.0, 1.0, 1.0), draw=10).shape == nnunet(images, label, 10)[0] == (4, 5, 6)


def test_a_dataset_without_foreground_is_a_data_error() -> None:
    cases = [analyse(*volume(seed, empty=True), (1.0, 1.0, 1.0), draw=10) for seed in range(3)]
    with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match="no training case has foreground"):
        aggregate(cases, pool=pool)


def test_what_is_remembered_comes_back_and_damage_is_noticed(tmp_path: Path) -> None:
    cache = FingerprintCache(tmp_path / "cache")
    case = analyse(*volume(1), (2.5, 0.7, 0.71), draw=10)
    cache.store("key", case)
    cache.store("old", case)
    found = cache.load("key")
    assert isinstance(found, CaseFingerprint)
    assert (found.shape, found.spacing, found.relative_size, found.draw) == (case.shape, case.spacing, case.relative_size, None)
    assert np.array_equal(found.foreground, case.foreground)
    assert cache.load("never") is None
    path = tmp_path / "cache" / "key.npz"
    data = bytearray(path.read_bytes())
    data[data.find(case.foreground.tobytes()) + 5] ^= 1
    path.write_bytes(bytes(data))
    assert cache.load("key") is None
    path.write_bytes(bytes(data[: len(data) // 2]))
    assert cache.load("key") is None
    cache.keep_only({"case": "key"})
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.npz"]
