"""Connection type ``dicomweb``, which describes an archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_nnunet.dicomweb.endpoint import Endpoint
from airflow_nnunet.dicomweb.model import SeriesFilter, Study, StudyQuery, checked_uid
from airflow_nnunet.jobs.exceptions import ArchiveUnavailable, InvalidConfig, NnunetJobError, from_job_error
from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.contract.storage.permissions import umask_for

if TYPE_CHECKING:
    from airflow_nnunet.dicomweb.archive import Archive
    from airflow_nnunet.dicomweb.retrieve import Retrieved
    from airflow_nnunet.dicomweb.store import StoreReport

DEFAULT_CONN_ID = "dicomweb_default"


class DicomWebHook(BaseHook):
    """Gives access to the archive of a connection, which has host, schema (https by default), port, login and password.

    The connection's extra may have ``base_path``, ``qido_prefix``, ``wado_prefix``, ``stow_prefix``, ``verify`` (true,
    or the path of a CA bundle), ``timeout_s``, ``tries`` and ``token`` (a bearer token instead of login and password).

    All methods block. They raise exceptions of :mod:`airflow_nnunet.jobs.exceptions`: ``ArchiveUnavailable`` if the
    archive does not answer, ``ArchiveRefused`` if credentials, address or rights are wrong, ``InvalidConfig`` for a
    wrong connection or argument.
    """

    conn_name_attr: ClassVar[str] = "dicomweb_conn_id"
    default_conn_name: ClassVar[str] = DEFAULT_CONN_ID
    conn_type: ClassVar[str] = "dicomweb"
    hook_name: ClassVar[str] = "DICOMweb archive"

    def __init__(self, dicomweb_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.dicomweb_conn_id = dicomweb_conn_id
        self._archive: Archive | None = None

    def get_conn(self) -> Archive:
        """Return the archive. It is always the same object, which threads may share."""
        if self._archive is None:
            self._archive = open_archive(self._connection())
        return self._archive

    def test_connection(self) -> tuple[bool, str]:
        """Return for the UI's test button whether the archive answers a query, and a message."""
        try:
            archive = open_archive(self._connection(), tries=1)
            archive.ping()
        except NnunetJobError as error:
            return False, str(error)
        return True, f"{archive.endpoint.url} answers"

    def find_studies(
        self,
        *,
        date_from: date | str | None = None,
        date_to: date | str | None = None,
        modality: str | None = None,
        description: str | None = None,
    ) -> list[Study]:
        """Return studies by date (both ends included), modality, and a pattern for the description."""
        return self.get_conn().find_studies(
            _checked(StudyQuery, date_from=date_from, date_to=date_to, modality=modality, description=description)
        )

    def study_state(self, study: str) -> Study:
        """Return how many series and instances of a study the archive has; zero for an unknown study."""
        return self.get_conn().study(_checked(checked_uid, study, field="study"))

    def retrieve_study(
        self,
        study: str,
        folder: Path,
        *,
        modality: str | None = None,
        series_description: str | None = None,
        workers: int = 4,
        sharing: str = "private",
    ) -> Retrieved:
        """Fetch a study into a folder, or what is missing of it; see :mod:`airflow_nnunet.dicomweb.retrieve`.

        Args:
            sharing: Who may read the files, as in section [nnunet]; by default only this process's user.
        """
        from airflow_nnunet.dicomweb.retrieve import retrieve_study

        only = _checked(SeriesFilter, modality=modality, description=series_description)
        uid = _checked(checked_uid, study, field="study")
        with umask_for(sharing):
            return retrieve_study(self.get_conn(), uid, folder, only=only, workers=workers)

    def store(self, paths: Sequence[Path], *, folder: Path, modalities: Sequence[str] = ("SEG",)) -> StoreReport:
        """Store each file of a folder once; see :mod:`airflow_nnunet.dicomweb.store`."""
        from airflow_nnunet.dicomweb.store import store_files

        return store_files(self.get_conn(), paths, folder=folder, modalities=modalities)

    def _connection(self) -> Any:
        try:
            return self.get_connection(self.dicomweb_conn_id)
        except AirflowNotFoundException as error:
            raise unknown_connection(self.dicomweb_conn_id) from error


def unknown_connection(conn_id: str) -> ArchiveUnavailable:
    """Return the error for an unknown connection. It is retried, as Airflow reports the same when its API fails."""
    fix = "add one of type dicomweb, see include/connections.example.json"
    return ArchiveUnavailable(f"lost: connection {conn_id!r}: does not exist, or Airflow's API does not answer; {fix}")


def open_archive(connection: Any, *, tries: int | None = None) -> Archive:
    """Return the archive of a connection. ``tries`` overrides the connection's own number.

    A person who triggers a DAG may name any connection in the form, and the first request sends its password to its
    host. So connections of other types are never used.

    Raises:
        InvalidConfig: The connection cannot be used.
    """
    if connection.conn_type != DicomWebHook.conn_type:
        raise InvalidConfig(
            f"config: connection {connection.conn_id!r}: is of type {connection.conn_type!r}; name one of type {DicomWebHook.conn_type}"
        )
    from airflow_nnunet.dicomweb.archive import Archive

    endpoint: Endpoint = _checked(Endpoint.from_connection, connection)
    return Archive(replace(endpoint, tries=tries) if tries else endpoint)


def _checked(build: Any, *args: Any, **fields: Any) -> Any:
    try:
        return build(*args, **fields)
    except JobError as error:
        raise from_job_error(error) from error
