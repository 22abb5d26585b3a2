"""Connection type ``dicomweb``: an archive, kept where Airflow keeps connections."""

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
    """An archive by its connection: host, schema (https unless it says http), port, login and password.

    The connection's extra may hold ``base_path``, ``qido_prefix``, ``wado_prefix``, ``stow_prefix``, ``verify`` (true, or the path
    of a CA bundle), ``timeout_s``, ``tries`` and ``token`` (a bearer token instead of login and password).

    All methods block and raise by class (:mod:`airflow_nnunet.jobs.exceptions`): ``ArchiveUnavailable`` when the archive does not
    answer, ``ArchiveRefused`` when credentials, address or rights are wrong, ``InvalidConfig`` for a wrong connection or argument.
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
        """The archive; the same object for the hook's life, usable in threads."""
        if self._archive is None:
            self._archive = open_archive(self._connection())
        return self._archive

    def test_connection(self) -> tuple[bool, str]:
        """What the UI's test button says: whether a query is answered."""
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
        """Studies by date (both ends included), a modality that they must have, and a pattern for their description."""
        return self.get_conn().find_studies(
            _checked(StudyQuery, date_from=date_from, date_to=date_to, modality=modality, description=description)
        )

    def study_state(self, study: str) -> Study:
        """How many series and instances the archive has of a study; zero of an unknown one."""
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
        """Bring a study below a folder, or the rest of it after an interruption; see :mod:`airflow_nnunet.dicomweb.retrieve`.

        Args:
            sharing: Who may read what arrives, as in section [nnunet]; by default this process's user alone.
        """
        from airflow_nnunet.dicomweb.retrieve import retrieve_study

        only = _checked(SeriesFilter, modality=modality, description=series_description)
        uid = _checked(checked_uid, study, field="study")
        with umask_for(sharing):
            return retrieve_study(self.get_conn(), uid, folder, only=only, workers=workers)

    def store(self, paths: Sequence[Path], *, folder: Path, modalities: Sequence[str] = ("SEG",)) -> StoreReport:
        """Store files of a folder, each one once; see :mod:`airflow_nnunet.dicomweb.store`."""
        from airflow_nnunet.dicomweb.store import store_files

        return store_files(self.get_conn(), paths, folder=folder, modalities=modalities)

    def _connection(self) -> Any:
        try:
            return self.get_connection(self.dicomweb_conn_id)
        except AirflowNotFoundException as error:
            raise unknown_connection(self.dicomweb_conn_id) from error


def unknown_connection(conn_id: str) -> ArchiveUnavailable:
    """The error of a connection that Airflow does not find: worth another try, as Airflow says so too when its API fails for a moment."""
    fix = "add one of type dicomweb, see include/connections.example.json"
    return ArchiveUnavailable(f"lost: connection {conn_id!r}: does not exist, or Airflow's API does not answer; {fix}")


def open_archive(connection: Any, *, tries: int | None = None) -> Archive:
    """The archive of a connection. ``tries`` instead of the connection's own.

    Whoever triggers a DAG may name a connection in its form, and its password goes to the connection's own host with the first request.
    So no other type of connection is ever used, whatever its host is.

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
