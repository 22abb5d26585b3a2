"""Checks ``regions_class_order`` by simulating which regions a network without errors would give back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

_ALL_TRIED = 6  # regions; with more, only the order from large to small is tried

Region = frozenset[int]


def painted(regions: Sequence[Region], order: Sequence[int]) -> dict[int, int]:
    """Return which value each value of the labels becomes when every region is found without error.

    nnU-Net paints one region after the other, each with its value of ``regions_class_order``, over what is there already
    (``LabelManager.convert_probabilities_to_segmentation``).
    """
    values = sorted({0}.union(*regions))
    result = dict.fromkeys(values, 0)
    for region, colour in zip(regions, order, strict=True):
        result |= dict.fromkeys(region, colour)
    return result


def lost_regions(regions: Mapping[str, Region], order: Sequence[int]) -> dict[str, str]:
    """Return regions that even a perfect network could not restore, each with what happens to it.

    Args:
        regions: Regions by name, in the order of the labels.
        order: The value of each region.
    """
    came_back = painted(list(regions.values()), order)
    found = {}
    for name, region in regions.items():
        missed = sorted(value for value in region if came_back[value] not in region)
        extra = sorted(value for value, colour in came_back.items() if colour in region and value not in region)
        if missed or extra:
            parts = [f"loses {_values(missed, came_back)}"] if missed else []
            parts += [f"gains {_values(extra, came_back)}"] if extra else []
            found[name] = " and ".join(parts)
    return found


def working_order(regions: Mapping[str, Region]) -> tuple[list[str], list[int]] | None:
    """Return an order of the regions, and their values, that restores every region, or None. The order is kept if possible."""
    names = list(regions)
    larger_first = sorted(names, key=lambda name: -len(regions[name]))
    others = itertools.permutations(names) if len(names) <= _ALL_TRIED else ()
    for candidate in map(list, itertools.chain((names, larger_first), others)):
        order = [_own_value(candidate[place:], regions) for place in range(len(candidate))]
        if not lost_regions({name: regions[name] for name in candidate}, order):
            return candidate, order
    return None


def _own_value(rest: Sequence[str], regions: Mapping[str, Region]) -> int:
    """Return a value of the first region that no following region has, if there is one."""
    region = regions[rest[0]]
    own = region.difference(*(regions[name] for name in rest[1:]))
    return min(own or region)


def _values(values: Sequence[int], came_back: Mapping[int, int]) -> str:
    """Describe values, such as ``value 4 (painted 2)``."""
    shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
    colours = sorted({came_back[value] for value in values})
    return f"value{'s'[: len(values) != 1]} {shown} (painted {', '.join(map(str, colours))})"
