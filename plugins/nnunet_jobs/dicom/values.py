"""Checks that all slices of a series define the meaning of their stored values alike; others would be shifted silently."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.model import Series, files_named
from nnunet_jobs.faults.codes import Code

ACTIVITY = "BQML"
"""The Units of PET whose values are activity in Bq/ml."""
_UNITS = ("BQML", "CNTS", "CPS", "GML", "PROPCNTS", "PROPCPS", "CM2ML", "PCNT", "MLML", "MLMING", "UMOLML", "1CM", "STDDEV", "NONE")
# RescaleSlope and RescaleIntercept are of type 1 there: without them the values are neither Hounsfield units nor activity.
_RESCALED = {
    "1.2.840.10008.5.1.4.1.1.2": "Hounsfield units",
    "1.2.840.10008.5.1.4.1.1.2.1": "Hounsfield units",
    "1.2.840.10008.5.1.4.1.1.2.2": "Hounsfield units",
    "1.2.840.10008.5.1.4.1.1.128": "activity",
    "1.2.840.10008.5.1.4.1.1.128.1": "activity",
    "1.2.840.10008.5.1.4.1.1.130": "activity",
}
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_ORIGINAL = "export the original images"
Slice = tuple[int, dict[str, Any], dict[str, Any]]
"""Number of the file, the image, and the plane."""


def value_faults(series: Series) -> list[Fault]:
    """Return faults where a series' headers do not define its values, or define them in several ways."""
    slices = [
        (instance.number, instance.image, plane) for instance in series.instances if instance.image for plane in instance.image["planes"]
    ]
    if not slices:
        return []
    faults = [*_kinds(series), *_encoding(slices)]
    faults += _rescale(slices, {instance.sop_class for instance in series.instances})
    faults += _differing(slices, lambda image, plane: plane["type"] if plane["type"] != "US" else "", "RescaleType", shown=False)
    faults += _differing(slices, lambda image, plane: unit_of(plane["units"]), "Units (what the values of PET are)", shown=True)
    return faults


def units_of(series: Series) -> str:
    """Return the unit of a PET series' values, such as ``BQML``; empty if the series does not say it or is not PET."""
    if series.modality != "PT":
        return ""
    found = {unit_of(plane["units"]) for instance in series.instances if instance.image for plane in instance.image["planes"]}
    return next(iter(found)) if len(found) == 1 else ""


def unit_of(text: str) -> str:
    """Return one of DICOM's defined terms for Units; ``other units`` for anything else, which a person may have typed."""
    return text if text in _UNITS or not text else "other units"


def compare_units(cases: Mapping[str, Sequence[Series]], channels: Sequence[str]) -> tuple[dict[str, str], list[Fault]]:
    """Return the Units of a dataset's PET by channel, and faults of cases in other units, which no network can distinguish.

    Args:
        cases: Maps a case id to the series of its channels, none if it cannot be used.
        channels: Names of the channels, in the order of the series.
    """
    found, faults = dict[str, str](), list[Fault]()
    for number, channel in enumerate(channels):
        units = {case: units_of(series[number]) for case, series in cases.items() if series and series[number].modality == "PT"}
        if not units:
            continue
        usual, count = Counter(units.values()).most_common(1)[0]
        found[channel] = usual
        for case, unit in units.items():
            if unit != usual:
                message = (
                    f"channel {channel!r}: its PET has the Units {unit or 'missing'}, that of other cases {usual or 'none'}; "
                    "export it in the same units, or register it as a dataset of its own"
                )
                faults.append(Fault(code=Code.DICOM_VALUES, case=case, message=message))
        if usual != ACTIVITY:
            message = (
                f"channel {channel!r}: the PET of {count} cases has the Units {usual or 'missing'}, so its values are not activity "
                f"({ACTIVITY}); predict only on PET of the same units"
            )
            faults.append(Fault(code=Code.DICOM_VALUES, message=message, severity="warning"))
    return found, faults


def unlike_units(series: Sequence[Series], units: Mapping[str, str], channels: Sequence[str]) -> list[Fault]:
    """Return faults of a case to predict whose PET is in other units than the model's.

    Args:
        series: Series of the channels.
        units: Maps a channel to the Units that the model's dataset was registered with.
        channels: Names of the channels, in the order of the series.
    """
    return [
        Fault(
            code=Code.DICOM_VALUES,
            message=f"channel {channel!r}: its PET has the Units {units_of(one) or 'missing'}, that of the model's dataset "
            f"{units[channel] or 'none'}; export it in the same units",
        )
        for one, channel in zip(series, channels, strict=False)
        if channel in units and one.modality == "PT" and units_of(one) != units[channel]
    ]


def usual_bits(series: Series) -> tuple[int, bool] | None:
    """Return the stored bits and sign of most slices, for series whose slices differ in them; None if all agree."""
    counts = Counter((image["stored"], image["signed"]) for image in (instance.image for instance in series.instances) if image)
    return counts.most_common(1)[0][0] if len(counts) > 1 else None


def _kinds(series: Series) -> list[Fault]:
    """Return faults of a series that mixes kinds of images: values of a screenshot or another modality have another meaning."""
    slices: list[Slice] = [
        (item.number, {"class": item.sop_class, "modality": item.image.get("modality", "")}, {}) for item in series.instances if item.image
    ]
    faults = _differing(slices, lambda image, _: image["modality"], "Modality", shown=False)
    return faults or _differing(slices, lambda image, _: image["class"], "SOPClassUID (the kind of image)", shown=False)


def _encoding(slices: Sequence[Slice]) -> list[Fault]:
    faults = []
    missing: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        if item[1]["missing"]:
            missing[" and ".join(item[1]["missing"])].append(item)
    for what, items in missing.items():
        faults.append(_fault(f"{what} missing in {_of(items, slices)}, so the pixels cannot be read; {_ORIGINAL}", items, slices))
    return faults + _differing(slices, lambda image, plane: image["photometric"], "PhotometricInterpretation", shown=False)


def _rescale(slices: Sequence[Slice], classes: Iterable[str]) -> list[Fault]:
    faults = []
    absent: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for item in slices:
        plane = item[2]
        absent[tuple(name for name, key in zip(_RESCALE, ("slope", "intercept"), strict=True) if plane[key] is None)].append(item)
    wrong = [item for item in slices if item[2]["slope"] == 0 or any(math.isnan(item[2][key] or 0) for key in ("slope", "intercept"))]
    if wrong:
        message = f"RescaleSlope is 0, or RescaleSlope or RescaleIntercept is not a number, in {_of(wrong, slices)}; {_ORIGINAL}"
        faults.append(_fault(message, wrong, slices))
    meaning = next((_RESCALED[kind] for kind in classes if kind in _RESCALED), None)
    for names, items in absent.items():
        if not names:
            continue
        if len(items) < len(slices) or len(names) == 1:
            consequence = "their values would be shifted or scaled against the others"
        elif meaning:
            consequence = f"without them the stored values are not {meaning}"
        else:
            continue  # such as MR, whose values have no unit
        are = "is" if len(names) == 1 else "are"
        faults.append(_fault(f"{' and '.join(names)} {are} missing in {_of(items, slices)}: {consequence}; {_ORIGINAL}", items, slices))
    return faults


def _differing(
    slices: Sequence[Slice], value: Callable[[dict[str, Any], dict[str, Any]], Hashable], name: str, *, shown: bool
) -> list[Fault]:
    """Return a fault if a value is not the same in all slices; the most frequent one is considered correct."""
    groups: dict[Any, list[Slice]] = defaultdict(list)
    for item in slices:
        groups[value(item[1], item[2])].append(item)
    if len(groups) < 2:
        return []
    usual = max(groups, key=lambda found: len(groups[found]))
    odd = [item for found, items in groups.items() if found != usual for item in items]
    values = f" ({', '.join(str(found or 'none') for found in sorted(groups, key=lambda found: -len(groups[found])))})" if shown else ""
    message = f"{name} of {_of(odd, slices)} differs from that of the rest{values}; {_ORIGINAL}, or as separate series"
    return [_fault(message, odd, slices)]


def _of(items: Sequence[Slice], slices: Sequence[Slice]) -> str:
    """Say how many slices, and in which files unless it is all of them."""
    if len(items) == len(slices):
        return f"all {len(slices)} slices"
    files = files_named(number for number, _, _ in items)
    return f"{len(items)} of {len(slices)} slices" + (f" ({files})" if files else "")


def _fault(message: str, items: Sequence[Slice], slices: Sequence[Slice]) -> Fault:
    """Make a fault, of the file that differs if it is a single one among others."""
    numbers = {number for number, _, _ in items}
    single = len(numbers) == 1 and len(numbers) < len({number for number, _, _ in slices}) and numbers != {0}
    return Fault(code=Code.DICOM_VALUES, message=message, file=f"file {next(iter(numbers))}" if single else None)
