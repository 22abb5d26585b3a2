"""Opens DICOM files for this whole package: with or without their mark, and with long values of any VR."""

from __future__ import annotations

import functools
import os
import stat
from typing import IO, Any

import pydicom
from pydicom import config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.hooks import hooks, raw_element_value, raw_element_vr
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from nnunet_jobs.dicom.mark import HEAD, begins_data_set, damaged_mark, marked


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the kind of a file by its first bytes.

    It is ``marked``, ``unmarked`` (a data set without preamble and mark), ``damaged`` (a preamble with a wrong mark), ``empty``
    or ``other``. This never waits on pipes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "other"
        head = os.pread(fd, HEAD, 0)
    finally:
        os.close(fd)
    if not head:
        return "empty"
    if marked(head):
        return "marked"
    return "unmarked" if begins_data_set(head) else "damaged" if damaged_mark(head) else "other"


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM files do, with or without mark."""
    return kind_of(path) in ("marked", "unmarked")


def read_file(file: str | os.PathLike[str] | IO[bytes], **options: Any) -> FileDataset:
    """Read a DICOM file with or without its mark.

    Args:
        file: Path, or a file opened for reading whose first bytes were checked.
        options: Options of :func:`pydicom.dcmread`.

    Returns:
        The data set. If the file names no transfer syntax, it has the uncompressed one that the file was read with.

    Raises:
        ValueError: The file at a path does not begin as DICOM files do.
    """
    _prepare()
    if isinstance(file, str | os.PathLike):
        file = os.path.realpath(file)
        if not is_dicom(file):
            raise ValueError("the file does not begin as DICOM files do")
    dataset = pydicom.dcmread(file, force=True, **options)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    return dataset


@functools.cache
def _prepare() -> None:
    """Let pydicom read public elements of VR UN by the standard's dictionary at any length.

    By default it does so only below 64 KiB. Longer values are the ones that must be written as UN, since the length of most other
    VRs has two bytes (PS3.5, 6.2.2).
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    hooks.register_callback("raw_element_vr", _known_vr)
    hooks.register_callback("raw_element_value", _known_value)


def _known_vr(raw: RawDataElement, data: dict[str, Any], **options: Any) -> None:
    raw_element_vr(raw, data, **options)
    if data["VR"] == "UN" and not raw.tag.is_private:
        try:
            data["VR"] = dictionary_VR(raw.tag)
        except KeyError:
            pass  # an element that the dictionary does not know


def _known_value(raw: RawDataElement, data: dict[str, Any], **options: Any) -> None:
    if raw.VR == "UN" and data["VR"] == "SQ" and raw.value:
        # the standard requires implicit VR inside it; some writers changed only the name of the VR
        raw = raw._replace(is_implicit_VR=not _explicit(raw.value), is_little_endian=True)
    raw_element_value(raw, data, **options)


def _explicit(sequence: bytes) -> bool:
    """Whether the first element of a sequence's first item says its VR."""
    return sequence[12:14].isalpha() and sequence[12:14].isupper() and sequence[8:10] != b"\xfe\xff"


def uid_name(uid: str) -> str:
    """Return DICOM's name of a class or a transfer syntax; the UID itself if DICOM does not know it.

    pydicom would log a UID that is not valid, and a damaged file may have its patient's name there.
    """
    return str(UID(uid, validation_mode=config.IGNORE).name)
