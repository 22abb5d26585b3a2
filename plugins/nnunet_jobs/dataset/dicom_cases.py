"""Groups the series of a scanned tree into cases: each is one study or one series, with channels by rule and label objects by reference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.contract.steps.series_rules import SeriesRule
from nnunet_jobs.dataset.dicom_labels import CandidateCase, match, unclaimed
from nnunet_jobs.dicom.header import NUMBERS
from nnunet_jobs.dicom.identity import Identity, Person
from nnunet_jobs.dicom.model import Scan, Series
from nnunet_jobs.faults.codes import Code

_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomCase:
    """A case before conversion.

    Attributes:
        person: The case's ids, and the patient behind them.
        channels: One series for each channel, in the order of the rules; empty when faults forbid it.
        objects: SEG and RTSTRUCT series, each with the number of the channel that it describes.
        faults: Errors and warnings of the case.
        label_faults: Faults of the label objects alone; they do not matter where no labels are needed.
    """

    person: Person
    channels: tuple[Series, ...] = ()
    objects: tuple[tuple[Series, int], ...] = ()
    faults: tuple[Fault, ...] = field(default=())
    label_faults: tuple[Fault, ...] = field(default=())


def keywords(rules: Mapping[str, SeriesRule]) -> list[str]:
    """Return the DICOM keywords that the rules use."""
    return sorted({"ImageType", *(keyword for rule in rules.values() for keyword in rule.tags)})


def cases_of(found: Scan, rules: Mapping[str, SeriesRule], identity: Identity) -> list[DicomCase]:
    """Return the cases of all studies, by id. A study of label objects alone that belong to no case counts too, to report its fault."""
    images: dict[str, list[Series]] = defaultdict(list)
    for series in found.series:
        if not series.labels:
            images[series.study_uid].append(series)
    objects = [series for series in found.series if series.labels]
    choices = [choice for uid, series in images.items() for choice in _study(uid, series, rules)]
    candidates = [CandidateCase(study=choice.study, channels=choice.channels) for choice in choices]
    matches = match(objects, [series for items in images.values() for series in items], candidates)
    cases = [_case(choice, matches.objects.get(place, ()), matches.faults.get(place, ()), identity) for place, choice in enumerate(choices)]
    known = {choice.study for choice in choices}
    for uid, left in matches.unclaimed.items():
        if uid not in known:
            choice = _Choice(study=uid, patient=left[0].patient)
            cases.append(_case(choice, (), (unclaimed(left, len(left), severity="error"),), identity))
    return sorted(cases, key=lambda case: case.person.case)


def faults_of(found: Scan, identity: Identity) -> list[Fault]:
    """Return the scan's own faults, with the case where the file says which."""
    return [
        replace(fault, case=identity.case(found.studies[fault.file])) if fault.file in found.studies else fault for fault in found.faults
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The series of a case, and what is wrong with them."""

    study: str
    series: str = ""
    channels: tuple[Series, ...] = ()
    patient: str = ""
    faults: tuple[Fault, ...] = ()


def _study(uid: str, images: Sequence[Series], rules: Mapping[str, SeriesRule]) -> Iterator[_Choice]:
    [*channels] = rules
    if len(channels) == 1 and rules[channels[0]].each:
        for item in images:
            if rules[channels[0]].matches(item):
                yield _Choice(study=uid, series=item.series_uid, channels=(item,), patient=item.patient)
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
    yield _Choice(study=uid, channels=tuple(chosen), patient=images[0].patient, faults=tuple(faults))


def _none(channel: str, images: Sequence[Series]) -> Fault:
    seen = "; ".join(_numbers(item) for item in images[:_SHOWN]) or "no images at all"
    message = f"channel {channel!r}: none of the study's {len(images)} image series matches ({seen}); widen its rule in 'series', or take"
    return Fault(code=Code.DICOM_SERIES_MISSING, message=f"{message} the study out of the source")


def _several(channel: str, matching: Sequence[Series]) -> Fault:
    seen = "; ".join(_numbers(item) for item in matching[:_SHOWN])
    message = f"channel {channel!r}: {len(matching)} series match ({seen}); narrow its rule in 'series'"
    return Fault(code=Code.DICOM_SERIES_AMBIGUOUS, message=message)


def _numbers(series: Series) -> str:
    """Describe a series by its numbers, without any text that a person typed."""
    images = [instance.image for instance in series.instances if instance.image]
    slices = sum(image["frames"] for image in images)
    size = f", {images[0]['columns']} x {images[0]['rows']}" if images else ""
    told = ", ".join(f"{keyword} {_shown(series.tags[keyword])}" for keyword in NUMBERS if _shown(series.tags.get(keyword, "")))
    modality = series.modality if series.modality.isalpha() and len(series.modality) <= 8 else "unknown modality"
    return f"{modality}, {slices} slices{size}{', ' if told else ''}{told}"


def _shown(value: Any) -> str:
    """Show a number, or how many different ones there are; anything else is free text and is left out."""
    if isinstance(value, tuple):
        return f"of {len(value)} values"
    try:
        return f"{float(value):g}"
    except ValueError:
        return ""


def _case(choice: _Choice, objects: Sequence[tuple[Series, int]], label_faults: Sequence[Fault], identity: Identity) -> DicomCase:
    patient = choice.channels[0].patient if choice.channels else choice.patient
    name, notes = identity.case(choice.study, choice.series), list(choice.faults)
    if not patient:
        message = "names no PatientID, so its study stands for the patient; other studies of the same person are not recognised"
        notes.append(Fault(code=Code.DICOM_PATIENT, message=message, severity="warning"))
    person = Person(
        case=name,
        group=identity.group(patient, choice.study),
        patient=patient,
        study=choice.study,
        series=tuple(item.series_uid for item in (*choice.channels, *(item for item, _ in objects))),
    )
    usable = not any(fault.severity == "error" for fault in notes)
    return DicomCase(
        person=person,
        channels=choice.channels if usable else (),
        objects=tuple(objects) if usable else (),
        faults=tuple(replace(fault, case=name) for fault in notes),
        # a missing channel is the cause, and is reported already
        label_faults=tuple(replace(fault, case=name) for fault in label_faults) if usable else (),
    )
