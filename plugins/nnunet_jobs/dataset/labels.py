"""Brings channel and label tables into nnU-Net's form, and reports every violation of nnU-Net's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_jobs.dataset.regions import lost_regions, working_order
from nnunet_jobs.faults.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Holds what ``dataset.json`` says about channels and labels.

    Attributes:
        channel_names: ``{"0": "T1"}``.
        labels: Name to value or to a list of values (regions); ``ignore`` is special.
        regions_class_order: Value to paint for each region, in order; None without regions.
    """

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        return len(self.channel_names)

    @property
    def values(self) -> frozenset[int]:
        """Return every value that a label image may hold, ``ignore`` included."""
        return frozenset(value for entry in self.labels.values() for value in (entry if isinstance(entry, list) else [entry]))

    def to_json(self) -> dict[str, Any]:
        """Return the three entries as ``dataset.json`` and ``manifest.json`` hold them."""
        return {"channel_names": self.channel_names, "labels": self.labels, "regions_class_order": self.regions_class_order}


def channel_table(raw: Any) -> tuple[dict[str, str], list[str]]:
    """Return the channel names in nnU-Net's form, and what is wrong with them."""
    if not isinstance(raw, Mapping) or not raw:
        return {}, ["channel_names must map '0', '1', ... to names"]
    table = {str(key): str(name) for key, name in raw.items()}
    problems = [f"channel_names: {key!r} has the unusable name {name!r}" for key, name in table.items() if not _printable(name)]
    expected = [str(number) for number in range(len(table))]
    if set(table) != set(expected):
        problems.append(f"channel_names has the keys {sorted(table)}; they must be {', '.join(expected)}")
        return table, problems
    return {key: table[key] for key in expected}, problems


def decathlon_labels(raw: Any) -> Any:
    """Turn Decathlon's ``{"0": "background", "1": "Anterior"}`` into nnU-Net's name-to-value form."""
    if not isinstance(raw, Mapping):
        return raw
    turned: dict[str, Any] = {}
    for value, name in raw.items():
        text = "background" if str(value) == "0" else str(name)
        turned[f"{text} ({value})" if text in turned else text] = value
    return turned


def label_table(raw: Any, order: Sequence[int] | None) -> tuple[dict[str, int | list[int]], list[int] | None, list[tuple[Code, str]]]:
    """Return labels and regions_class_order in nnU-Net's form, and every violation of nnU-Net's rules.

    The rules: ``background`` is 0; values are integers 0, 1, 2, ... without a gap; ``ignore`` is one value, the highest;
    regions need a ``regions_class_order`` with one value for each region, from which every region can be restored.
    """
    if not isinstance(raw, Mapping) or not raw:
        return {}, None, [(Code.LABELS_INVALID, "label_names must map names to values, such as {'background': 0, 'tumour': 1}")]
    table: dict[str, int | list[int]] = {}
    problems: list[tuple[Code, str]] = []
    for name, entry in raw.items():
        numbers = [_whole(item) for item in (entry if isinstance(entry, list | tuple) else [entry])]
        good = [number for number in numbers if number is not None]
        if not _printable(str(name)) or not good or len(good) != len(numbers) or len(set(good)) != len(good):
            problems.append((Code.LABELS_INVALID, f"label {name!r}={entry!r} must be an integer of 0 or more, or a list of different ones"))
            continue
        table[str(name)] = sorted(good) if isinstance(entry, list | tuple) else good[0]
    if table.get("background") != 0:
        problems.append((Code.BACKGROUND_MISSING, "labels need 'background' with the value 0"))
    ignore = table.get("ignore")
    values = sorted({0, *(v for name, entry in table.items() if name != "ignore" for v in (entry if isinstance(entry, list) else [entry]))})
    if values != list(range(len(values))):
        problems.append((Code.LABELS_NOT_CONSECUTIVE, f"label values {values} must be 0, 1, 2, ... without a gap"))
    if ignore is not None and (not isinstance(ignore, int) or ignore != (values[-1] + 1 if values else 0)):
        problems.append((Code.IGNORE_NOT_HIGHEST, f"'ignore'={ignore!r} must be one value, one higher than all others"))
    regions = [entry for name, entry in table.items() if name != "ignore" and entry not in (0, [0])]
    single = [entry for entry in regions if isinstance(entry, int)]
    if not regions and not problems:
        problems.append((Code.LABELS_INVALID, f"label_names={dict(table)} has nothing but background; add the structures to segment"))
    if not any(isinstance(entry, list) and len(entry) > 1 for entry in regions):
        if len(set(single)) != len(single):
            problems.append((Code.LABELS_INVALID, f"two labels share one value: {table}"))
        return table, None, problems
    given = order if isinstance(order, list | tuple) else ()
    checked = [_whole(value) for value in given]
    if len(checked) != len(regions) or None in checked:
        message = f"regions_class_order={order!r} must be a list of one value for each of the {len(regions)} regions, in the labels' order"
        problems.append((Code.REGIONS_ORDER_INVALID, message))
        return table, None, problems
    problem = _order_problem(table, checked, regions)
    if problem is not None:
        problems.append((Code.REGIONS_ORDER_INVALID, problem))
    return table, [value for value in checked if value is not None], problems


def _order_problem(table: Mapping[str, int | list[int]], order: Sequence[int | None], entries: Sequence[int | list[int]]) -> str | None:
    """Say why even a perfect network could not restore every region, and suggest an order that can, if there is one."""
    names = [name for name, entry in table.items() if name != "ignore" and entry not in (0, [0])]
    regions = {name: frozenset(entry if isinstance(entry, list) else [entry]) for name, entry in zip(names, entries, strict=True)}
    wrong = [
        f"{value!r} is not a value of the region {name!r} {sorted(regions[name])}"
        for name, value in zip(names, order, strict=True)
        if value not in regions[name]
    ]
    if not wrong:
        lost = lost_regions(regions, [value for value in order if value is not None])
        wrong = [f"the region {name!r} {what}" for name, what in lost.items()]
    if not wrong:
        return None
    works = working_order(regions)
    if works is None:
        fix = "No order can: make a further region of the values that two of them share"
    elif works[0] == names:
        fix = f"{works[1]} would"
    else:
        fix = f"List the labels in the order {', '.join(works[0])}, with regions_class_order {works[1]}"
    return f"regions_class_order={list(order)}: even a perfect network could not give the regions back: {'; '.join(wrong)}. {fix}"


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) and value >= 0 else None


def _printable(name: str) -> bool:
    return bool(name.strip()) and name.isprintable() and len(name) <= 100
