"""Queries of an archive: studies, series and instances, all pages of them, compared with the archive's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from airflow_nnunet.dicomweb.answers import (
    MODALITY,
    SERIES_DESCRIPTION,
    SERIES_INSTANCES,
    SERIES_UID,
    SOP_UID,
    STUDY_UID,
    answered_uid,
    matches,
    number_of,
    study_of,
    text_of,
    well_formed,
)
from airflow_nnunet.dicomweb.endpoint import Endpoint
from airflow_nnunet.dicomweb.model import Series, SeriesFilter, Study, StudyQuery
from airflow_nnunet.dicomweb.transport import Transport
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable

_PAGE = 500
# A query that matches more is a mistake, such as a forgotten date. Reading it all would load the archive for hours.
MOST_STUDIES = 10_000
_MOST_INSTANCES = 200_000
# Some archives answer with these codes when asked for items after the last one; most answer with an empty list.
_PAST_THE_END = (404, 416)
_STUDY_FIELDS = ("StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
_SERIES_FIELDS = ("Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")


class Queries:
    """Asks the archive of one connection. Its methods block and may be called from several threads.

    UIDs must have been checked before (:func:`~airflow_nnunet.dicomweb.model.checked_uid`). All methods raise
    :class:`~airflow_nnunet.jobs.exceptions.ArchiveUnavailable` when it does not answer after several tries and
    :class:`~airflow_nnunet.jobs.exceptions.ArchiveRefused` when credentials, address or rights are wrong.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.transport = Transport(endpoint)
        self._cap = 0  # number of studies in the longest answer that was found to be cut

    def ping(self) -> None:
        """Ask for one study and ignore the content of the answer."""
        self.transport.call("a query", lambda client: client.search_for_studies(limit=1, fuzzymatching=False))

    def find_studies(self, query: StudyQuery) -> list[Study]:
        """Return the studies that match, in the order of the archive.

        The archive filters by date and modality. Descriptions are compared here, because Orthanc's plugin does not
        decode percent signs in a URL, some archives compare upper and lower case, and others ignore filters.

        Raises:
            ArchiveRefused: More than 10,000 studies match.
        """
        found, ignored = self._studies(query)
        if ignored:
            found = self._whole(query, found)
        return [study_of(item) for item in found if matches(query, item)]

    def study(self, uid: str) -> Study:
        """Return the counts of one study; they are zero when the archive has no such study."""
        study = self._told_of(uid)
        if study.series is not None and study.instances is not None:
            return study
        series = self.series(uid, None)
        return Study(uid=uid, series=len(series), instances=sum(self.count(uid, item) for item in series))

    def series(self, study: str, only: SeriesFilter | None, *, counted: bool = False) -> list[Series]:
        """Return the series of a study that match ``only``, or all of them if it is None.

        Args:
            counted: Always compare with the archive's own number of series, which costs a query. Otherwise the numbers
                are compared only if the archive ignored ``offset``.

        Raises:
            ArchiveRefused: The list is shorter than that number; see :meth:`instances`.
            ArchiveUnavailable: The list is shorter than that number; see :meth:`instances`.
        """
        what = "a query for series"
        found, ignored = self._pages(
            what,
            SERIES_UID,
            lambda client, page: client.search_for_series(study, **page),
            fields=_SERIES_FIELDS,
            most=_PAGE * 100,
        )
        told = self._told_of(study).series if ignored or counted else None
        if told is not None and told > len(found):
            raise self._cut(what, len(found), told) if ignored else self._fewer(what, len(found), told, "study")
        return [
            Series(
                uid=answered_uid(item, SERIES_UID),
                modality=text_of(item, MODALITY),
                instances=number_of(item, SERIES_INSTANCES),
            )
            for item in found
            if only is None or only.matches(text_of(item, MODALITY), text_of(item, SERIES_DESCRIPTION))
        ]

    def instances(self, study: str, series: Series) -> list[str]:
        """Return the SOPInstanceUIDs of a series, which must be as many as the archive itself counts.

        Raises:
            ArchiveRefused: The archive cuts the list and ignores ``offset``, so that the rest cannot be requested.
            ArchiveUnavailable: It lists fewer than it counts, for instance while the series arrives.
        """
        what = "a query for instances"
        found, ignored = self._pages(
            what,
            SOP_UID,
            lambda client, page: client.search_for_instances(study, series.uid, **page),
            most=_MOST_INSTANCES,
        )
        told = series.instances
        if told is None and ignored:  # the list may be cut; metadata have no pages
            told = len(self.transport.call("metadata of a series", lambda client: client.retrieve_series_metadata(study, series.uid)))
        if told is not None and told > len(found):
            raise self._cut(what, len(found), told) if ignored else self._fewer(what, len(found), told, "series")
        return [answered_uid(item, SOP_UID) for item in found]

    def count(self, study: str, series: Series) -> int:
        """Return the number of instances of a series, counted by the archive or else here."""
        return series.instances if series.instances is not None else len(self.instances(study, series))

    def has(self, study: str, sop_uid: str) -> bool:
        """Return whether the archive has an instance."""
        found = self._asked(
            "a query for one instance",
            lambda client: client.search_for_instances(study, fuzzymatching=False, search_filters={"SOPInstanceUID": sop_uid}),
        )
        return any(text_of(item, SOP_UID) == sop_uid for item in found)

    def _studies(self, query: StudyQuery) -> tuple[list[dict[str, Any]], bool]:
        filters = {"StudyDate": query.dates, "ModalitiesInStudy": query.modality}
        return self._pages(
            "a query for studies",
            STUDY_UID,
            lambda client, page: client.search_for_studies(**page),
            fields=_STUDY_FIELDS,
            filters={name: value for name, value in filters.items() if value},
            most=MOST_STUDIES,
        )

    def _whole(self, query: StudyQuery, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return all studies of a query whose answer may be cut, because the archive ignored ``offset``.

        QIDO gives no total number of studies. An answer is cut if the answers for the two halves of its dates have more
        studies together. The dates are then divided until each answer is shorter than the longest one that was cut. A
        query without dates to divide is cut if a query without any filter returns as many studies, and not the same
        ones.

        Raises:
            ArchiveRefused: The answer for a single day is cut, or there are no dates to divide.
        """
        if len(found) < self._cap or not found:
            return found
        first, last = query.date_from, query.date_to
        if first is None or last is None or first == last:
            if self._cap or self._answers_no_more(found):
                raise self._cut("a query for studies", len(found), None)
            return found
        middle = first + (last - first) // 2
        halves = [replace(query, date_to=middle), replace(query, date_from=middle + timedelta(days=1))]
        parts = [self._studies(half)[0] for half in halves]
        if {text_of(item, STUDY_UID) for part in parts for item in part} <= {text_of(item, STUDY_UID) for item in found}:
            # If both halves are shorter than the whole, neither is cut. A half that has all studies proves nothing.
            full = [(half, part) for half, part in zip(halves, parts, strict=True) if len(part) == len(found)]
            return self._whole(*full[0]) if full else found
        self._cap = max(self._cap, len(found))
        return [item for half, part in zip(halves, parts, strict=True) for item in self._whole(half, part)]

    def _answers_no_more(self, found: list[dict[str, Any]]) -> bool:
        """Return whether the archive cuts answers at this length: asked for one more, it gives as many, but others."""
        most = len(found)
        try:
            items = self._asked("a query for studies", lambda client: client.search_for_studies(limit=most + 1, fuzzymatching=False))
        except ArchiveRefused:  # some archives answer no query without a filter
            return False
        return len(items) == most and not {text_of(item, STUDY_UID) for item in items} <= {text_of(item, STUDY_UID) for item in found}

    def _told_of(self, study: str) -> Study:
        """Return the archive's own counts of a study: None if it does not give them, zero if it has no such study."""
        found, _ = self._pages(
            "a query for one study",
            STUDY_UID,
            lambda client, page: client.search_for_studies(**page),
            fields=_STUDY_FIELDS,
            filters={"StudyInstanceUID": study},
            most=_PAGE,
        )
        return next((study_of(item) for item in found if text_of(item, STUDY_UID) == study), Study(uid=study, series=0, instances=0))

    def _cut(self, what: str, found: int, told: int | None) -> ArchiveRefused:
        where = f"connection {self.endpoint.conn_id!r}: {what}"
        listed = f"{found} of the {told} that it counts" if told is not None else f"no more than {found} at once"
        fix = f"raise the archive's limit of results to {told or 'more'}, or have it honour offset"
        return ArchiveRefused(f"config: {where}: the archive lists {listed} and ignores offset, so the rest cannot be requested; {fix}")

    def _fewer(self, what: str, found: int, told: int, of: str) -> ArchiveUnavailable:
        where = f"connection {self.endpoint.conn_id!r}: {what}"
        return ArchiveUnavailable(f"lost: {where}: the archive lists {found} of the {told} that it counts; is the {of} complete?")

    def _pages(
        self,
        what: str,
        uid_tag: str,
        request: Callable[[Any, dict[str, Any]], list[dict[str, Any]]],
        *,
        most: int,
        fields: Sequence[str] = (),
        filters: Mapping[str, str] | None = None,
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return all pages of a query, each item once, and whether the archive ignored ``offset``.

        Archives limit pages as they like, and some ignore the offset. So a short page does not end the query, and a
        full one does not prove that there is more. The query ends with a page that has nothing new. If that page is not
        empty, the offset was ignored, and the pages do not show whether there is more.
        """
        found: dict[str, dict[str, Any]] = {}
        seen = 0
        while True:
            page: dict[str, Any] = {"fuzzymatching": False, "limit": _PAGE, "offset": seen, "fields": list(fields) or None}
            page["search_filters"] = dict(filters) if filters else None
            try:
                items = self._asked(what, lambda client, page=page: request(client, page))  # type: ignore[misc]
            except ArchiveRefused as error:
                if seen and error.status in _PAST_THE_END:
                    return list(found.values()), False
                raise
            new = {text_of(item, uid_tag): item for item in items if text_of(item, uid_tag) not in found}
            if not new:
                return list(found.values()), bool(items)
            found |= new
            seen += len(items)
            if len(found) > most:
                where = f"connection {self.endpoint.conn_id!r}: {what}"
                raise ArchiveRefused(f"config: {where} matches more than {most}; narrow it by date, modality or description")

    def _asked(self, what: str, request: Callable[[Any], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the answer to a query.

        Raises:
            ArchiveRefused: The answer is not DICOM JSON.
        """
        try:
            items = self.transport.call(what, request)
        except (TypeError, AttributeError, RecursionError):  # of dicomweb-client and json, for other answers
            items = None
        if not well_formed(items):
            where = f"connection {self.endpoint.conn_id!r}: {what}"
            raise ArchiveRefused(f"config: {where}: the answer is not DICOM JSON; check base_path, or fix the archive")
        return items or []
