"""Operators that move files between the archive and the workspace, run in the worker, and resume in the next try."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_nnunet.dicomweb.hook import DEFAULT_CONN_ID, DicomWebHook
from airflow_nnunet.dicomweb.model import SeriesFilter, blank, checked_modality
from airflow_nnunet.jobs.exceptions import from_job_error, to_airflow_error
from airflow_nnunet.jobs.retry import DEFAULT_RETRIES, DEFAULT_RETRY_DELAY, NnunetRetryPolicy
from airflow_nnunet.operators.fields import coerce, is_template
from airflow_nnunet.operators.rendering import RenderingMixin
from airflow_nnunet.operators.results import ResultMixin
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError, DataError, Failure, FailureClass, JobError
from nnunet_jobs.contract.storage.permissions import make_root, workspace_umask

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

_ON_EMPTY = ("fail", "skip")
_MOST_WORKERS = 16


class _ArchiveOperator(ResultMixin, RenderingMixin, BaseOperator):  # type: ignore[misc, unused-ignore]
    """Base of both operators, with the archive, the workspace, and retries by failure class."""

    ui_color = "#fdf1e3"

    def __init__(
        self,
        *,
        dicomweb_conn_id: str | XComArg = DEFAULT_CONN_ID,
        nnunet_conn_id: str | XComArg | None = None,
        team: str | None = None,
        on_empty: str = "fail",
        retries: int = DEFAULT_RETRIES,
        retry_policy: Any = None,
        retry_delay: timedelta | float = DEFAULT_RETRY_DELAY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retries=retries, retry_policy=retry_policy or NnunetRetryPolicy(), retry_delay=retry_delay, **kwargs)
        if on_empty not in _ON_EMPTY:
            raise ConfigError(field="on_empty", value=on_empty, problem="must be fail or skip")
        self.dicomweb_conn_id: Any = dicomweb_conn_id
        self.nnunet_conn_id: Any = nnunet_conn_id
        self.team = team  # not a template, as in NnunetOperator
        self.on_empty = on_empty

    def execute(self, context: Context) -> dict[str, Any]:
        """Do the work, or what an earlier try has left to do."""
        try:
            return self.transfer(resolve_config(self.nnunet_conn_id, team=self.team), DicomWebHook(self.dicomweb_conn_id))
        except JobError as error:
            raise from_job_error(error) from error

    def transfer(self, config: NnunetConfig, hook: DicomWebHook) -> dict[str, Any]:
        """Do the operator's own work. Subclasses override this."""
        raise NotImplementedError

    def _empty(self, message: str) -> None:
        if self.on_empty == "skip":
            raise AirflowSkipException(message)
        raise DataError(message)


class DicomWebRetrieveOperator(_ArchiveOperator):
    """Fetch one study of an archive into ``input_roots``. Map it over the UIDs that :class:`DicomWebStudySensor`
    returns.

    Instances are fetched in parallel, each under a temporary name until it is complete. A retry fetches only what is
    missing, and a study that is already there costs a few queries. Folder and file names are hashes of UIDs. Returns
    ``name`` and ``folder`` of the study, ``series``, ``instances``, how many of these were ``fetched`` now, and how
    many files were ``removed`` because the archive withdrew them.

    Args:
        study: StudyInstanceUID.
        folder: Absolute folder below ``input_roots``, with a sub-folder for each study.
        modality: Only series of this modality, such as ``MR``; if empty, all images, but no segmentations, structure
            sets and reports.
        series_description: Only series that match this pattern with ``*`` and ``?``.
        workers: Number of requests at once, 1 to 16; the task's pool limits how many studies are fetched at once.
        on_empty: ``fail`` or ``skip`` when no series matches.
        dicomweb_conn_id: Connection of type ``dicomweb``.
        nnunet_conn_id: Connection with another workspace.
        team: Team whose roots are used; see NnunetOperator.
        kwargs: Everything that any operator takes.
    """

    template_fields = ("study", "folder", "modality", "series_description", "workers", "dicomweb_conn_id", "nnunet_conn_id")

    def __init__(
        self,
        *,
        study: str | XComArg,
        folder: str | XComArg,
        modality: str | XComArg | None = None,
        series_description: str | XComArg | None = None,
        workers: int | str | XComArg = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.study: Any = study
        self.folder: Any = folder
        self.modality: Any = modality
        self.series_description: Any = series_description
        self.workers = workers
        if not (is_template(modality) or is_template(series_description)):
            self._series()
        if not is_template(workers):
            self._workers()

    def transfer(self, config: NnunetConfig, hook: DicomWebHook) -> dict[str, Any]:
        """Fetch the instances that are missing."""
        folder = config.workspace.confine_incoming(self.folder, field="folder")
        only = self._series()
        with workspace_umask(config.workspace):
            make_root(config.workspace, folder)
        result = hook.retrieve_study(
            self.study,
            folder,
            modality=only.modality,
            series_description=only.description,
            workers=self._workers(),
            sharing=config.workspace.sharing,
        )
        if not result.instances:
            self._empty(f"study {result.name}: the archive has no series of modality {only.modality or 'any image'} that matches")
        return result.to_json()

    def _series(self) -> SeriesFilter:
        return SeriesFilter(modality=blank(self.modality), description=blank(self.series_description))

    def _workers(self) -> int:
        workers = int(coerce(self.workers, int, "workers"))
        if not 1 <= workers <= _MOST_WORKERS:
            raise ConfigError(field="workers", value=self.workers, problem=f"must be 1 to {_MOST_WORKERS}")
        return workers


class DicomWebStoreOperator(_ArchiveOperator):
    """Store the DICOM results of a predictions folder in an archive, each file once.

    The folder records by content and archive what was confirmed, so that a retry sends only the rest. All files are
    tried before the task fails with the name and reason of each failed one. Returns ``stored`` and ``already_stored``.

    Args:
        folder: Absolute folder below ``output_roots``, whose ``.dcm`` files are stored, also those of its sub-folders.
        modalities: Modalities that may be sent. Another one is a failure, so that no source image is sent back by
            mistake.
        on_empty: ``fail`` or ``skip`` when the folder has no such file.
        dicomweb_conn_id: Connection of type ``dicomweb``.
        nnunet_conn_id: Connection with another workspace.
        team: Team whose roots are used; see NnunetOperator.
        kwargs: Everything that any operator takes.
    """

    template_fields = ("folder", "modalities", "dicomweb_conn_id", "nnunet_conn_id")

    def __init__(self, *, folder: str | XComArg, modalities: list[str] | str | XComArg = "SEG", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder: Any = folder
        self.modalities = modalities
        if not is_template(modalities):
            self._modalities()

    def transfer(self, config: NnunetConfig, hook: DicomWebHook) -> dict[str, Any]:
        """Send the files that are not confirmed yet."""
        from airflow_nnunet.dicomweb.store import find_files

        folder = Path(config.workspace.confine_output(self.folder, field="folder"))
        if not folder.is_dir():
            raise ConfigError(field="folder", value=self.folder, problem="no such folder", fix="name the output_folder of the prediction")
        files = find_files(folder)
        if not files:
            self._empty(f"folder={self.folder!r}: has no .dcm file; predict with dicom_seg=True")
        with workspace_umask(config.workspace):
            report = hook.store(files, folder=folder, modalities=self._modalities())
        if report.faults:
            message = f"{len(report.faults)} of {len(files)} files were not stored; the others are not sent again"
            failure_class = FailureClass.LOST if report.may_pass else FailureClass.DATA
            raise to_airflow_error(Failure(failure_class=failure_class, message=message, faults=report.faults))
        return {"stored": report.stored, "already_stored": report.already_stored}

    def _modalities(self) -> list[str]:
        modalities: list[str] = coerce(self.modalities, list[str], "modalities")
        if not modalities:
            raise ConfigError(field="modalities", value=[], problem="name at least one, such as SEG")
        for modality in modalities:
            checked_modality(modality)
        return modalities
