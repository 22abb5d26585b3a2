"""Which series of a scanned tree make a case: one study or one series each, its channels by rule, its label objects by reference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.series_rules import SeriesRule
from nnunet_jobs.dataset.faults import Code
from nnunet_jobs.dicom.header import NUMBERS
from nnunet_jobs.dicom.identity import Identity, Person
from nnunet_jobs.dicom.model import Series
from nnunet_jobs.dicom.series import Scan

LABELS = ("SEG", "RTSTRUCT")
_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomCase:
    """A case before conversion.

    Attributes:
        person: its ids, and whom they stand for. channels: a series each, in the order of the rules; empty when faults forbid it.
        objects: SEG and RTSTRUCT series that describe ``reference``, one of the channels. faults: what is wrong, or odd.
    """

    person: Person
    channels: tuple[Series, ...] = ()
    objects: tuple[Series, ...] = ()
    reference: Series | None = None
    faults: tuple[Fault, ...] = field(default=())


def keywords(rules: Mapping[str, SeriesRule]) -> list[str]:
    """DICOM keywords that the rules look at."""
    return sorted({"ImageType", *(keyword for rule in rules.values() for keyword in rule.tags)})


def cases_of(found: Scan, rules: Mapping[str, SeriesRule], identity: Identity) -> list[DicomCase]:
    """Cases of all studies, by id."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for series in found.series:
        studies[series.study_uid].append(series)
    cases = [case for uid, series in studies.items() for case in _study(uid, series, rules, identity)]
    return sorted(cases, key=lambda case: case.person.case)


def faults_of(found: Scan, identity: Identity) -> list[Fault]:
    """The scan's own faults, with the case where the file says which."""
    return [
        replace(fault, case=identity.case(found.studies[fault.file])) if fault.file in found.studies else fault for fault in found.faults
    ]


def _study(uid: str, series: Sequence[Series], rules: Mapping[str, SeriesRule], identity: Identity) -> Iterator[DicomCase]:
    images = [item for item in series if item.modality not in LABELS]
    objects = [item for item in series if item.modality in LABELS]
    [*channels] = rules
    if len(channels) == 1 and rules[channels[0]].each:
        for item in images:
            if rules[channels[0]].matches(item):
                yield _case(uid, item.series_uid, (item,), objects, identity, own_series=True)
        return
    chosen: list[Series] = []
    faults: list[Fault] = []
    for channel, rule in rules.items():
        matching = [item for item in images if rule.matches(item)]
        if len(matching) == 1:
            chosen += matching
            continue
        faults.append(_none(channel, images) if not matching else _several(channel, matching))
    twice = [count for count in Counter(item.series_uid for item in chosen).values() if count > 1]
    if twice:
        message = "one series matches several channels; narrow their rules in 'series'"
        faults.append(Fault(code=Code.DICOM_SERIES_AMBIGUOUS, message=message))
    yield _case(uid, "", tuple(chosen), objects, identity, faults=faults, patient=series[0].patient)


def _none(channel: str, images: Sequence[Series]) -> Fault:
    seen = "; ".join(_numbers(item) for item in images[:_SHOWN]) or "no images at all"
    message = f"channel {channel!r}: none of the study's {len(images)} image series matches ({seen}); widen its rule in 'series', or take"
    return Fault(code=Code.DICOM_SERIES_MISSING, message=f"{message} the study out of the source")


def _several(channel: str, matching: Sequence[Series]) -> Fault:
    seen = "; ".join(_numbers(item) for item in matching[:_SHOWN])
    message = f"channel {channel!r}: {len(matching)} series match ({seen}); narrow its rule in 'series'"
    return Fault(code=Code.DICOM_SERIES_AMBIGUOUS, message=message)


def _numbers(series: Series) -> str:
    """What tells a series from others, without a word that a person typed."""
    images = [instance.image for instance in series.instances if instance.image]
    slices = sum(image["frames"] for image in images)
    size = f", {images[0]['columns']} x {images[0]['rows']}" if images else ""
    told = ", ".join(f"{keyword} {_shown(series.tags[keyword])}" for keyword in NUMBERS if _shown(series.tags.get(keyword, "")))
    modality = series.modality if series.modality.isalpha() and len(series.modality) <= 8 else "unknown modality"
    return f"{modality}, {slices} slices{size}{', ' if told else ''}{told}"


def _shown(value: Any) -> str:
    """A number, or how many different ones; anything else is free text and stays out."""
    if isinstance(value, tuple):
        return f"of {len(value)} values"
    try:
        return f"{float(value):g}"
    except ValueError:
        return ""


def _case(
    study: str,
    series_uid: str,
    channels: tuple[Series, ...],
    objects: Sequence[Series],
    identity: Identity,
    *,
    faults: Sequence[Fault] = (),
    patient: str = "",
    own_series: bool = False,
) -> DicomCase:
    patient = channels[0].patient if channels else patient
    name, notes = identity.case(study, series_uid), list(faults)
    reference = next((channel for channel in channels if any(channel.series_uid in item.refers_to for item in objects)), None)
    used = tuple(item for item in objects if reference and reference.series_uid in item.refers_to)
    if channels and len(used) < len(objects) and not own_series:
        message = (
            f"{len(objects) - len(used)} of {len(objects)} SEG and RTSTRUCT series describe another series than its image, and are unused"
        )
        notes.append(Fault(code=Code.LABEL_REFERENCE, message=message, severity="warning"))
    if not patient:
        message = "names no PatientID, so its study stands for the patient; other studies of the same person are not recognised"
        notes.append(Fault(code=Code.DICOM_PATIENT, message=message, severity="warning"))
    person = Person(
        case=name,
        group=identity.group(patient, study),
        patient=patient,
        study=study,
        series=tuple(item.series_uid for item in (*channels, *used)),
    )
    usable = not any(fault.severity == "error" for fault in notes)
    return DicomCase(
        person=person,
        channels=channels if usable else (),
        objects=used,
        reference=reference,
        faults=tuple(replace(fault, case=name) for fault in notes),
    )
