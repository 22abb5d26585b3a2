"""``regions_class_order`` is judged by what a perfect network would give back, as nnU-Net itself paints regions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from devtools.testbed.data import LABELS, raw
from nnunet_jobs.dataset.labels import label_table
from nnunet_jobs.dataset.regions import lost_regions, painted, working_order
from support.validating import validate

BRATS = {"WT": [1, 2, 3, 4], "TC": [1, 2, 3], "ET": 1}
SMALL_FIRST = {"tumor": 2, "masses": [2, 3], "kidney": [1, 2, 3]}
CROSSED = {"a": [1, 3], "b": [2, 3]}


def problem(labels: dict[str, Any], order: list[int] | None) -> str | None:
    _, _, problems = label_table({"background": 0, **labels}, order)
    assert {code for code, _ in problems} <= {"regions_order_invalid"}
    assert len(problems) <= 1  # one fault for one cause
    return problems[0][1] if problems else None


@pytest.mark.parametrize(
    ("labels", "order", "fix"),
    [
        (BRATS, [4, 3, 1], None),
        (BRATS, [4, 2, 1], None),
        (BRATS, [2, 3, 1], "[4, 2, 1] would"),  # painted with a value of a smaller region
        (BRATS, [1, 2, 1], "[4, 2, 1] would"),  # one value for two regions
        (SMALL_FIRST, [2, 3, 1], "List the labels in the order kidney, masses, tumor, with regions_class_order [1, 3, 2]"),
        ({"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, [1, 3, 2], None),
        (CROSSED, [1, 2], "No order can: make a further region"),
        ({**CROSSED, "both": 3}, [1, 2, 3], None),
        ({"a": [1, 2], "b": [2, 3], "c": 3}, [1, 2, 3], None),
        ({"b": [2, 3], "a": [1, 2], "c": 3}, [2, 1, 3], "List the labels in the order a, b, c, with regions_class_order [1, 2, 3]"),
        ({"whole": [1, 2], "core": 2}, [2, 2], "[1, 2] would"),
        ({"whole": [1, 2], "core": 2}, [1, 1], "1 is not a value of the region 'core' [2]"),
        ({"whole": [1, 2], "same": [1, 2]}, [1, 2], None),
        ({"whole": [1, 2], "core": [2], "ignore": 3}, [1, 2], None),
    ],
)
def test_an_order_is_good_when_a_perfect_network_gives_every_region_back(labels, order, fix):
    said = problem(labels, order)
    if fix is None:
        assert said is None
    else:
        assert fix in str(said)


def test_the_message_says_what_becomes_of_which_values():
    said = str(problem(SMALL_FIRST, [2, 3, 1]))
    assert "the region 'tumor' loses value 2 (painted 1)" in said
    assert "the region 'masses' loses values 2, 3 (painted 1)" in said
    assert "the region 'TC' gains value 4 (painted 2)" in str(problem(BRATS, [2, 3, 1]))


def test_the_simulation_paints_as_nnunet_does():
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    rng = np.random.default_rng(0)
    for _ in range(100):
        values = int(rng.integers(2, 6))
        regions = {
            f"r{number}": frozenset(rng.choice(np.arange(1, values + 1), int(rng.integers(1, values + 1)), replace=False).tolist())
            for number in range(int(rng.integers(2, 5)))
        }
        if not any(len(region) > 1 for region in regions.values()):
            continue
        order = [int(rng.choice(sorted(region))) for region in regions.values()]
        truth = sorted({0}.union(*regions.values()))
        perfect = np.stack([np.isin(truth, sorted(region)).astype(np.float32) for region in regions.values()])[:, None, None]
        manager = LabelManager({"background": 0, **{name: tuple(sorted(region)) for name, region in regions.items()}}, order)
        got = manager.convert_probabilities_to_segmentation(perfect)[0, 0].tolist()
        assert got == [painted(list(regions.values()), order)[value] for value in truth]
        expected = {
            name for name, region in regions.items() if not np.array_equal(np.isin(truth, list(region)), np.isin(got, list(region)))
        }
        assert set(lost_regions(regions, order)) == expected


def test_where_an_order_works_one_is_found():
    regions = [frozenset(some) for size in (1, 2, 3) for some in itertools.combinations((1, 2, 3), size)]
    for three in itertools.combinations(regions, 3):
        named = {f"r{number}": region for number, region in enumerate(three)}
        any_works = any(
            not lost_regions({name: named[name] for name in names}, order)
            for names in itertools.permutations(named)
            for order in itertools.product(*(sorted(named[name]) for name in names))
        )
        assert (working_order(named) is not None) == any_works, three


def test_the_validator_refuses_such_an_order(tmp_path):
    source = raw(tmp_path / "s", ["a", "b"], labels={"background": 0, "back": 2, "whole": [1, 2]}, regions_class_order=[2, 1])
    assert LABELS["back"] == 2
    done = validate(source, "--json")
    assert done.returncode == 3
    assert '"regions_order_invalid"' in done.stdout
    assert validate(source, "--regions-class-order", "[2, 1]").returncode == 2  # then it is a field that is wrong
