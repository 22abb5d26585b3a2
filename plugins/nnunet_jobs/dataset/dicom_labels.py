"""Finds the case of each label object by referenced series, else by image, else by frame of reference, in any study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.model import Series, files_named, same_patient
from nnunet_jobs.faults.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateCase:
    """A case that label objects may belong to: its study, and the series of its channels."""

    study: str
    channels: tuple[Series, ...]


@dataclass(slots=True, kw_only=True)
class Matches:
    """Says which case each label object belongs to.

    Attributes:
        objects: For each candidate, by its index, the objects with the channel that each describes.
        faults: Faults of each candidate.
        unclaimed: Objects that belong to no candidate, by their study.
    """

    objects: dict[int, list[tuple[Series, int]]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[int, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    unclaimed: dict[str, list[Series]] = field(default_factory=lambda: defaultdict(list))


def match(objects: Sequence[Series], images: Sequence[Series], candidates: Sequence[CandidateCase]) -> Matches:
    """Find the cases of all label objects.

    Args:
        objects: Label series.
        images: All image series of the tree, also those that no rule chooses: an object that names one of them
            describes that one, whatever else has its frame of reference.
    """
    found = Matches()
    series = {item.series_uid for item in images}
    series_of = {instance.sop_uid: item.series_uid for item in images for instance in item.instances}
    for item in objects:
        named = series & set(item.refers_to) or {series_of[uid] for uid in item.refers_to_images if uid in series_of}
        if named:
            places = [place for place, candidate in enumerate(candidates) if _channel(candidate, named) is not None]
        elif item.refers_to or item.refers_to_images:
            places = []
        else:
            frames = set(item.refers_to_frames)
            named = {image.series_uid for image in images if image.frame_of_reference_uid in frames}
            places = _nearest(
                item, [place for place, candidate in enumerate(candidates) if _channel(candidate, named) is not None], candidates
            )
            if len(places) > 1:
                for place in places:
                    found.faults[place].append(_ambiguous(item, len(places)))
                continue
        for place in places:
            channel = _channel(candidates[place], named) or 0
            if not same_patient(item.patient, candidates[place].channels[channel].patient):
                found.faults[place].append(_stranger(item))
                continue
            found.objects[place].append((item, channel))
        if not places:
            found.unclaimed[item.study_uid].append(item)
    _name_unclaimed(found, candidates)
    return found


def _channel(candidate: CandidateCase, named: set[str]) -> int | None:
    return next((number for number, channel in enumerate(candidate.channels) if channel.series_uid in named), None)


def _nearest(item: Series, places: list[int], candidates: Sequence[CandidateCase]) -> list[int]:
    """Prefer candidates of the object's own study, since several studies may share a frame of reference."""
    return [place for place in places if candidates[place].study == item.study_uid] or places


def _name_unclaimed(found: Matches, candidates: Sequence[CandidateCase]) -> None:
    """Report objects that belong to no case: a warning if others of the study belong to one, an error if none does."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, candidate in enumerate(candidates):
        places[candidate.study].append(place)
    for study, left in found.unclaimed.items():
        here = places.get(study, [])
        if not here:
            continue
        used = [place for place in here if found.objects.get(place)]
        in_all = len(left) + len({item.series_uid for place in used for item, _ in found.objects[place]})
        found.faults[(used or here)[0]].append(unclaimed(left, in_all, severity="warning" if used else "error"))


def unclaimed(left: Sequence[Series], in_all: int, *, severity: str) -> Fault:
    """Return the fault of label objects that belong to no case."""
    files = files_named(instance.number for item in left for instance in item.instances)
    silent = all(not item.refers_to and not item.refers_to_images and not item.refers_to_frames for item in left)
    what = (
        "say neither which series or images they describe nor in which frame of reference they are"
        if silent
        else "describe another series than its image"
    )
    message = (
        f"{len(left)} of {in_all} SEG and RTSTRUCT series{f' ({files})' if files else ''} {what}, and are unused; "
        "choose the series that they describe by the rules in 'series', or take them out of the source"
    )
    return Fault(code=Code.LABEL_REFERENCE, message=message, severity=severity)


def _ambiguous(item: Series, cases: int) -> Fault:
    message = (
        f"a {item.modality} object{_in_file(item)} names a frame of reference only, which {cases} cases have; "
        "export it again with the series that it describes"
    )
    return Fault(code=Code.LABEL_REFERENCE, message=message)


def _stranger(item: Series) -> Fault:
    message = f"a {item.modality} object{_in_file(item)} describes its image but names another PatientID; correct the one that is wrong"
    return Fault(code=Code.DICOM_PATIENT, message=message)


def _in_file(item: Series) -> str:
    files = files_named(instance.number for instance in item.instances)
    return f" ({files})" if files else ""
