"""Uses the three services of an archive: paged queries, retrieval of one instance, storage of a batch. Calls block."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_nnunet.dicomweb.answers import (
    FAILED,
    REASON,
    REFERENCED,
    REFERENCED_UID,
    items_of,
    number_of,
    text_of,
)
from airflow_nnunet.dicomweb.queries import Queries
from airflow_nnunet.dicomweb.transport import pydicom
from airflow_nnunet.jobs.exceptions import ArchiveRefused, ArchiveUnavailable, InstancesRejected

# PS3.18 table I.2-2: storage failures that the same instance will cause again. Others may pass.
_LASTING = {0x0122: "SOP class not supported", 0x0124: "not authorised"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAnswer:
    """Holds the answer to a batch: UIDs that were stored, and for each other UID the reason and whether it may pass."""

    stored: frozenset[str]
    failed: Mapping[str, tuple[str, bool]]


class Archive(Queries):
    """Represents the archive of one connection. See :class:`~airflow_nnunet.dicomweb.queries.Queries` for what its methods raise."""

    # --- WADO-RS ------------------------------------------------------------------------------------------------
    def fetch(self, study: str, series: str, sop_uid: str) -> bytes:
        """Return one instance as a DICOM file, in the transfer syntax in which the archive stores it.

        Raises:
            InstancesRejected: The answer is not DICOM, or is another instance.
            ArchiveUnavailable: The archive does not answer, or the instance was withdrawn after it was listed. The next
                try lists the instances again.
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
    def store(self, datasets: Mapping[str, Any]) -> BatchAnswer:
        """Store datasets by their SOPInstanceUID. Storing one again makes no copy, as the archive identifies it by its
        UID.

        An instance that the answer does not mention counts as stored only if a query finds it.
        """
        batch = list(datasets.values())
        answer = self.transport.call("a storage", lambda client: _store(client, batch))
        stored = {text_of(item, REFERENCED_UID) for item in items_of(answer, REFERENCED)} & set(datasets)
        failed = {text_of(item, REFERENCED_UID): _reason(number_of(item, REASON)) for item in items_of(answer, FAILED)}
        for uid, dataset in datasets.items():
            if uid in stored or uid in failed:
                continue
            if self.has(str(dataset.StudyInstanceUID), uid):
                stored.add(uid)
            else:
                failed[uid] = ("the archive accepted it but does not have it", True)
        return BatchAnswer(stored=frozenset(stored), failed={uid: reason for uid, reason in failed.items() if uid in datasets})


def _parsed(client: Any, study: str, series: str, sop_uid: str) -> Any:
    """Return the instance, or None if it cannot be parsed. The parser's message is dropped, as it may quote the file."""
    import requests

    unreadable = (ValueError, LookupError, EOFError, AttributeError, TypeError, struct.error, pydicom().errors.InvalidDicomError)
    try:
        return client.retrieve_instance(study, series, sop_uid, media_types=(("application/dicom", "*"),))
    except requests.RequestException:
        raise
    except unreadable:
        return None


def _store(client: Any, batch: Sequence[Any]) -> dict[str, Any]:
    """Return the answer's DICOM JSON. If an archive stores none of a batch, this comes with status 409 or 400."""
    import requests

    try:
        answer: dict[str, Any] = client.store_instances(batch).to_json_dict()
    except requests.HTTPError as error:
        try:
            answer = error.response.json() if error.response is not None else {}
        except ValueError:
            raise error from None
        if not isinstance(answer, dict) or not items_of(answer, FAILED):
            raise
    return answer


def _reason(code: int | None) -> tuple[str, bool]:
    """Return a message for a FailureReason, and whether it may pass."""
    if code is None:
        return "the archive gives no reason", True
    if code in _LASTING:
        return f"{_LASTING[code]} ({code:04X}H)", False
    if code & 0xF000 == 0xC000 or code & 0xFF00 == 0xA900:
        return f"the archive cannot read it as an instance of its SOP class ({code:04X}H)", False
    if code & 0xFF00 == 0xA700:
        return f"the archive is out of resources ({code:04X}H)", True
    return f"failure {code:04X}H", True
