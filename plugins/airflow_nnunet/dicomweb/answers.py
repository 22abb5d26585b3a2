"""DICOM JSON as archives answer with it: tags, and how their values are read."""

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
    """Whether a query means a study of an answer."""
    modalities = [str(value) for value in values(item, MODALITIES)]
    return query.matches(text_of(item, STUDY_DATE), modalities, text_of(item, STUDY_DESCRIPTION))


def well_formed(answer: object) -> bool:
    """Whether an answer to a query is what DICOM JSON has there: a list of objects, each with a list of values for a tag.

    Of anything else no part is believed: half-read, it would look like an answer with nothing in it.
    """
    return isinstance(answer, list) and all(isinstance(item, Mapping) and all(map(_is_element, item.values())) for item in answer)


def _is_element(element: object) -> bool:
    return isinstance(element, Mapping) and isinstance(element.get("Value", []), list)


def study_of(item: Mapping[str, Any]) -> Study:
    """A study of an answer."""
    return Study(uid=answered_uid(item, STUDY_UID), series=number_of(item, STUDY_SERIES), instances=number_of(item, STUDY_INSTANCES))


def answered_uid(item: Mapping[str, Any], tag: str) -> str:
    """A UID of an answer. It becomes a part of URLs, so it is checked like a user's."""
    try:
        return checked_uid(text_of(item, tag), field=f"({tag[:4]},{tag[4:]})")
    except ConfigError as error:
        raise InstancesRejected(f"data: the archive's answer: {error}") from None


def values(item: Mapping[str, Any], tag: str) -> list[Any]:
    """All values of a tag."""
    return list(item.get(tag, {}).get("Value") or ())


def items_of(item: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """Items of a sequence."""
    return [value for value in values(item, tag) if isinstance(value, Mapping)]


def text_of(item: Mapping[str, Any], tag: str) -> str:
    """The first value of a tag; empty without one."""
    found = values(item, tag)
    return str(found[0]).strip() if found else ""


def number_of(item: Mapping[str, Any], tag: str) -> int | None:
    """The first value of a tag as a number; None without one."""
    text = text_of(item, tag)
    return int(text) if text.isascii() and text.isdigit() else None
