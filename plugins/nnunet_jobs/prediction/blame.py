"""Decides whether an error that ends a case's prediction is the fault of the case or of the job, such as a missing folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import Bug, FailureClass, JobError
from nnunet_jobs.prediction.cases import Case

# Classes that may be one case's fault. Any other (memory, disk, GPU, a stop) would affect the next case too and fails the job.
_OF_THE_CASE = (FailureClass.DATA, FailureClass.BUG)


def require_of_the_case(error: Exception, case: Case, folders: Sequence[Path]) -> None:
    """Raise an error that fails the job, unless the error is the case's fault.

    Args:
        error: What ended the work on the case.
        folders: Folders of the job, in which the work reads and writes.

    Raises:
        Bug: A file or a folder of the job is missing, or the operating system refuses an operation on one; a Bug is
            raised again.
        Exception: The error itself, if it would affect the next case too.
    """
    if isinstance(error, Bug) or classify(error) not in _OF_THE_CASE:
        raise error
    for folder in folders:
        if not folder.is_dir():
            raise Bug(f"{folder}: this folder of the job is missing while case {case.case} is predicted ({error})") from error
    if case.converted and (gone := [path.name for path in case.images if not path.exists()]):
        raise Bug(f"{', '.join(gone)}: converted for this job and missing while the case is predicted") from error
    if isinstance(error, JobError):
        return  # the code that raised it has checked the system's error
    theirs = {str(path) for path in (*case.images, *([case.label] if case.label else []))} if not case.converted else set()
    for refused in _system_errors(error):
        if not {str(name) for name in (refused.filename, refused.filename2) if name is not None} & theirs:
            raise Bug(f"a file of the job could not be used while case {case.case} was predicted: {refused}") from error


def in_words(error: Exception) -> str:
    """Say why the case failed: the error's own sentence, without the name of its Python class."""
    if classify(error) is FailureClass.DATA:
        return str(error)
    words = str(error).strip()
    return f"an unexpected error{f' ({words})' if words else ''}; the job's log has its details"


def _system_errors(error: BaseException) -> Iterator[OSError]:
    """Yield the system's errors in the error or its causes. Readers raise OSError for bad content too, but without a number."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
