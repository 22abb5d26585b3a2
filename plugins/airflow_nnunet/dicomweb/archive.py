"""The three services of an archive: queries that page, retrieval of one instance, storage of a batch. Blocking; safe in threads."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_nnunet.dicomweb.endpoint import Endpoint
from airflow_nnunet.dicomweb.model import Series, SeriesFilter, Study, StudyQuery, checked_uid
from airflow_nnunet.dicomweb.transport import Transport, pydicom
from airflow_nnunet.exceptions import ArchiveRefused, ArchiveUnavailable, InstancesRejected
from nnunet_jobs.contract.failure import ConfigError

_PAGE = 500
# A query that matches more than this is a mistake, such as a forgotten date; asking on would load the archive for hours.
MOST_STUDIES = 10_000
_MOST_INSTANCES = 200_000
_STUDY_FIELDS = ("StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
_SERIES_FIELDS = ("Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")

# Tags of the answers' DICOM JSON.
_STUDY_DATE, _STUDY_DESCRIPTION, _STUDY_UID = "00080020", "00081030", "0020000D"
_MODALITIES, _MODALITY, _SERIES_DESCRIPTION = "00080061", "00080060", "0008103E"
_SERIES_UID, _SOP_UID = "0020000E", "00080018"
_STUDY_SERIES, _STUDY_INSTANCES, _SERIES_INSTANCES = "00201206", "00201208", "00201209"
_FAILED, _REFERENCED, _REFERENCED_UID, _REASON = "00081198", "00081199", "00081155", "00081197"

# PS3.18 table I.2-2: failures of storage that the same instance meets again tomorrow; the rest is the archive's own trouble.
_LASTING = {0x0122: "SOP class not supported", 0x0124: "not authorised"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an archive said about a batch: UIDs it has, and for each one it has not the reason and whether that may pass."""

    stored: frozenset[str]
    failed: Mapping[str, tuple[str, bool]]


class Archive:
    """One archive behind one connection.

    UIDs that it is given must be checked ones (:func:`~airflow_nnunet.dicomweb.model.checked_uid`). All methods raise
    :class:`~airflow_nnunet.exceptions.ArchiveUnavailable` when it does not answer after several tries and
    :class:`~airflow_nnunet.exceptions.ArchiveRefused` when credentials, address or rights are wrong.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.transport = Transport(endpoint)

    # --- QIDO-RS ------------------------------------------------------------------------------------------------
    def ping(self) -> None:
        """Ask for one study and look at nothing in the answer."""
        self.transport.call("a query", lambda client: client.search_for_studies(limit=1, fuzzymatching=False))

    def find_studies(self, query: StudyQuery) -> list[Study]:
        """Studies that match, in the order of the archive.

        Date and modality are the archive's to judge, descriptions are compared here: Orthanc's plugin does not decode the percent
        signs that wildcards and spaces become in a URL, capitals count in some archives only, and others skip filters unasked.

        Raises:
            ArchiveRefused: more than 10 000 match.
        """
        filters = {"StudyDate": query.dates, "ModalitiesInStudy": query.modality}
        found = self._pages(
            "a query for studies",
            _STUDY_UID,
            lambda client, page: client.search_for_studies(**page),
            fields=_STUDY_FIELDS,
            filters={name: value for name, value in filters.items() if value},
            most=MOST_STUDIES,
        )
        return [_study(item) for item in found if _matches(query, item)]

    def study(self, uid: str) -> Study:
        """Counts of one study; zero when the archive has no such study."""
        found = self._pages(
            "a query for one study",
            _STUDY_UID,
            lambda client, page: client.search_for_studies(**page),
            fields=_STUDY_FIELDS,
            filters={"StudyInstanceUID": uid},
            most=_PAGE,
        )
        study = next((_study(item) for item in found if _text(item, _STUDY_UID) == uid), Study(uid=uid, series=0, instances=0))
        if study.series is not None and study.instances is not None:
            return study
        series = self.series(uid, None)
        return Study(uid=uid, series=len(series), instances=sum(self.count(uid, item) for item in series))

    def series(self, study: str, only: SeriesFilter | None) -> list[Series]:
        """Series of a study that ``only`` means; all of them for None."""
        found = self._pages(
            "a query for series",
            _SERIES_UID,
            lambda client, page: client.search_for_series(study, **page),
            fields=_SERIES_FIELDS,
            most=_PAGE * 100,
        )
        return [
            Series(
                uid=_answered_uid(item, _SERIES_UID),
                modality=_text(item, _MODALITY),
                instances=_number(item, _SERIES_INSTANCES),
            )
            for item in found
            if only is None or only.matches(_text(item, _MODALITY), _text(item, _SERIES_DESCRIPTION))
        ]

    def instances(self, study: str, series: str) -> list[str]:
        """SOPInstanceUIDs of a series."""
        found = self._pages(
            "a query for instances",
            _SOP_UID,
            lambda client, page: client.search_for_instances(study, series, **page),
            most=_MOST_INSTANCES,
        )
        return [_answered_uid(item, _SOP_UID) for item in found]

    def count(self, study: str, series: Series) -> int:
        """Instances of a series: as the archive counts them, else counted here."""
        return series.instances if series.instances is not None else len(self.instances(study, series.uid))

    def has(self, study: str, sop_uid: str) -> bool:
        """Whether the archive has an instance."""
        found = self.transport.call(
            "a query for one instance",
            lambda client: client.search_for_instances(study, fuzzymatching=False, search_filters={"SOPInstanceUID": sop_uid}),
        )
        return any(_text(item, _SOP_UID) == sop_uid for item in found)

    def _pages(
        self,
        what: str,
        uid_tag: str,
        request: Callable[[Any, dict[str, Any]], list[dict[str, Any]]],
        *,
        most: int,
        fields: Sequence[str] = (),
        filters: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """All pages of a query, each item once.

        Archives cap a page where they like, and some ignore the offset; so neither a short page ends the query nor a full one
        proves that there is more: it ends with a page that has nothing new.
        """
        found: dict[str, dict[str, Any]] = {}
        seen = 0
        while True:
            page: dict[str, Any] = {"fuzzymatching": False, "limit": _PAGE, "offset": seen, "fields": list(fields) or None}
            page["search_filters"] = dict(filters) if filters else None
            items = self.transport.call(what, lambda client, page=page: request(client, page))  # type: ignore[misc]
            new = {_text(item, uid_tag): item for item in items if _text(item, uid_tag) not in found}
            if not new:
                return list(found.values())
            found |= new
            seen += len(items)
            if len(found) > most:
                where = f"connection {self.endpoint.conn_id!r}: {what}"
                raise ArchiveRefused(f"config: {where} matches more than {most}; narrow it by date, modality or description")

    # --- WADO-RS ------------------------------------------------------------------------------------------------
    def fetch(self, study: str, series: str, sop_uid: str) -> bytes:
        """One instance as a DICOM file, in the transfer syntax that the archive stores it in.

        Raises:
            InstancesRejected: what came is not DICOM, or is another instance.
            ArchiveUnavailable: also when the instance was withdrawn after it was listed; the next try lists again.
        """
        try:
            dataset = self.transport.call("a retrieval", lambda client: _parsed(client, study, series, sop_uid))
        except ArchiveRefused as error:
            if error.status == 404 and not self.has(study, sop_uid):
                where = f"connection {self.endpoint.conn_id!r}"
                raise ArchiveUnavailable(f"lost: {where}: an instance was withdrawn while its study was retrieved") from None
            raise
        if dataset is None or str(dataset.get("SOPInstanceUID", "")) != sop_uid:
            what = "no DICOM file" if dataset is None else "another instance"
            raise InstancesRejected(f"data: connection {self.endpoint.conn_id!r}: asked for an instance, the archive sent {what}")
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()

    # --- STOW-RS ------------------------------------------------------------------------------------------------
    def store(self, datasets: Mapping[str, Any]) -> Answer:
        """Store datasets by their SOPInstanceUID. Storing one again leaves one: the archive knows it by its UID.

        An instance that the answer does not mention counts as stored only if a query finds it.
        """
        batch = list(datasets.values())
        answer = self.transport.call("a storage", lambda client: _store(client, batch))
        stored = {_text(item, _REFERENCED_UID) for item in _items(answer, _REFERENCED)} & set(datasets)
        failed = {_text(item, _REFERENCED_UID): _reason(_number(item, _REASON)) for item in _items(answer, _FAILED)}
        for uid, dataset in datasets.items():
            if uid in stored or uid in failed:
                continue
            if self.has(str(dataset.StudyInstanceUID), uid):
                stored.add(uid)
            else:
                failed[uid] = ("the archive took it but does not have it", True)
        return Answer(stored=frozenset(stored), failed={uid: reason for uid, reason in failed.items() if uid in datasets})


def _parsed(client: Any, study: str, series: str, sop_uid: str) -> Any:
    """The instance, or None when what came cannot be parsed. The parser's own words may quote the file, so they go nowhere."""
    import requests

    unreadable = (ValueError, LookupError, EOFError, AttributeError, TypeError, struct.error, pydicom().errors.InvalidDicomError)
    try:
        return client.retrieve_instance(study, series, sop_uid, media_types=(("application/dicom", "*"),))
    except requests.RequestException:
        raise
    except unreadable:
        return None


def _store(client: Any, batch: Sequence[Any]) -> dict[str, Any]:
    """The answer's DICOM JSON; an archive that failed them all says so with status 409 or 400 and the same form of answer."""
    import requests

    try:
        answer: dict[str, Any] = client.store_instances(batch).to_json_dict()
    except requests.HTTPError as error:
        try:
            answer = error.response.json() if error.response is not None else {}
        except ValueError:
            raise error from None
        if not isinstance(answer, dict) or not _items(answer, _FAILED):
            raise
    return answer


def _reason(code: int | None) -> tuple[str, bool]:
    """Words for a FailureReason, and whether it may pass."""
    if code is None:
        return "the archive gives no reason", True
    if code in _LASTING:
        return f"{_LASTING[code]} ({code:04X}H)", False
    if code & 0xF000 == 0xC000 or code & 0xFF00 == 0xA900:
        return f"the archive cannot read it as what it says it is ({code:04X}H)", False
    if code & 0xFF00 == 0xA700:
        return f"the archive is out of resources ({code:04X}H)", True
    return f"failure {code:04X}H", True


def _matches(query: StudyQuery, item: Mapping[str, Any]) -> bool:
    modalities = [str(value) for value in _values(item, _MODALITIES)]
    return query.matches(_text(item, _STUDY_DATE), modalities, _text(item, _STUDY_DESCRIPTION))


def _study(item: Mapping[str, Any]) -> Study:
    return Study(uid=_answered_uid(item, _STUDY_UID), series=_number(item, _STUDY_SERIES), instances=_number(item, _STUDY_INSTANCES))


def _answered_uid(item: Mapping[str, Any], tag: str) -> str:
    """A UID of an answer. It becomes a part of URLs, so it is checked like a user's."""
    try:
        return checked_uid(_text(item, tag), field=f"({tag[:4]},{tag[4:]})")
    except ConfigError as error:
        raise InstancesRejected(f"data: the archive's answer: {error}") from None


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    return list(item.get(tag, {}).get("Value") or ())


def _items(item: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    return [value for value in _values(item, tag) if isinstance(value, Mapping)]


def _text(item: Mapping[str, Any], tag: str) -> str:
    values = _values(item, tag)
    return str(values[0]).strip() if values else ""


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    text = _text(item, tag)
    return int(text) if text.isascii() and text.isdigit() else None
