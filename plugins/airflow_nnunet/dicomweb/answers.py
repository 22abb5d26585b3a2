"""Reads the DICOM JSON of an archive's answers: tags and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_nnunet.dicomweb.model import Study, StudyQuery, checked_uid
from airflow_nnunet.jobs.exceptions import InstancesRejected
from nnunet_jobs.contract.failure import ConfigError

STUDY_DATE, STUDY_DESCRIPTION, STUDY_UID = "00080020", "00081030", "0020000D"
MODALITIES, MODALITY, SERIES_DESCRIPTION = "00080061", "00080060", "0008103E"
SERIES_UID, SOP_UID = "0020000E", "00080018"
STUDY_SERIES, STUDY_INSTANCES, SERIES_INSTANCES = "00201206", "00201208", "00201209"
FAILED, REFERENCED, REFERENCED_UID, REASON = "00081198", "00081199", "00081155", "00081197"


def matches(query: StudyQuery, item: Mapping[str, Any]) -> bool:
    """Return whether a study of an answer matches a query."""
    modalities = [str(value) for value in values(item, MODALITIES)]
    return query.matches(text_of(item, STUDY_DATE), modalities, text_of(item, STUDY_DESCRIPTION))


def well_formed(answer: object) -> bool:
    """Return whether an answer to a query is valid DICOM JSON: a list of objects with a list of values for each tag.

    Any other answer is refused as a whole, because a part of it could look like an empty answer.
    """
    return isinstance(answer, list) and all(isinstance(item, Mapping) and all(map(_is_element, item.values())) for item in answer)


def _is_element(element: object) -> bool:
    return isinstance(element, Mapping) and isinstance(element.get("Value", []), list)


def study_of(item: Mapping[str, Any]) -> Study:
    """Return the study that an item of an answer describes."""
    return Study(uid=answered_uid(item, STUDY_UID), series=number_of(item, STUDY_SERIES), instances=number_of(item, STUDY_INSTANCES))


def answered_uid(item: Mapping[str, Any], tag: str) -> str:
    """Return a UID of an answer. It becomes part of URLs, so it is checked like a UID from a user."""
    try:
        return checked_uid(text_of(item, tag), field=f"({tag[:4]},{tag[4:]})")
    except ConfigError as error:
        raise InstancesRejected(f"data: the archive's answer: {error}") from None


def values(item: Mapping[str, Any], tag: str) -> list[Any]:
    """Return all values of a tag."""
    return list(item.get(tag, {}).get("Value") or ())


def items_of(item: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """Return the items of a sequence."""
    return [value for value in values(item, tag) if isinstance(value, Mapping)]


def text_of(item: Mapping[str, Any], tag: str) -> str:
    """Return the first value of a tag, or an empty string."""
    found = values(item, tag)
    return str(found[0]).strip() if found else ""


def number_of(item: Mapping[str, Any], tag: str) -> int | None:
    """Return the first value of a tag as an integer, or None."""
    text = text_of(item, tag)
    return int(text) if text.isascii() and text.isdigit() else None
