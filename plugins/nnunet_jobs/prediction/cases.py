"""Defines a case to predict, and checks every byte of its images before nnU-Net's reader, which ignores some damage, reads them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError, DataError, Fault
from nnunet_jobs.dataset.names import ENDINGS, PICTURES
from nnunet_jobs.dataset.readers.agreement import Member, disagreements
from nnunet_jobs.dataset.readers.formats import read_volume
from nnunet_jobs.faults.codes import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: its id, one image for each channel, the label if it is known, and the reason if it cannot be predicted.

    ``converted``: the job itself wrote the images, so that a missing one is the job's fault and not the case's.
    ``warnings``: faults that do not forbid the case; they become flags.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    problem: str | None = None
    converted: bool = False
    warnings: tuple[Fault, ...] = ()


def checked_case_id(case: str, *, field: str) -> str:
    """Return the id, if it is safe as a file name.

    Raises:
        ConfigError: It is empty, too long, hidden, or has separators or control characters.
    """
    fits = 0 < len(case.encode()) <= 180 and not case.startswith(".") and not re.search(r"[/\\\0]", case)
    if not fits or any(unicodedata.category(character).startswith("C") for character in case):
        raise ConfigError(
            field=field, value=case, problem="a case id becomes a file name", fix="use up to 180 visible characters without '/' and '\\'"
        )
    return case


def check_images(
    case: Case,
    *,
    file_ending: str,
    channels: int | None = None,
    reader: str = "",
    beat: Callable[[], None] = lambda: None,
    reserve: Callable[[int], None] = lambda _size: None,
) -> tuple[Fault, ...]:
    """Read every image to its last byte and refuse damage that nnU-Net's reader would silently accept.

    SimpleITK fills a truncated file with zeros, turns NaN into 0 and stops before a gzip checksum, so each file is first read
    as registration reads it. Endings that registration does not know are left to nnU-Net's own reader.

    Args:
        channels: Channels that the files must hold together, if colours are channels.
        reader: Class name of nnU-Net's reader of the model.
        beat: Called for each MiB; may raise to stop.
        reserve: Called with the bytes that an image needs before it is read; may raise MemoryError.

    Returns:
        Warnings, the same as registration's, which do not forbid the case.

    Raises:
        DataError: The case has errors; all its faults are listed.
    """
    if file_ending not in ENDINGS:
        return ()
    faults: list[Fault] = []
    volumes = [
        read_volume(path, case=case.case, name=path.name, label=False, beat=beat, reserve=reserve, reader=reader) for path in case.images
    ]
    for path, volume in zip(case.images, volumes, strict=True):
        faults += [fault for fault in volume.faults if fault.severity == "error"]
        if len(volume.shape) > 3:
            message = f"has the shape {volume.shape}; give one file a channel"
            faults.append(Fault(code=Code.NOT_3D, message=message, case=case.case, file=path.name))
    held = sum(volume.channels for volume in volumes)
    if not faults and file_ending in PICTURES and channels is not None and held != channels:
        code = Code.CHANNEL_MISSING if held < channels else Code.CHANNEL_EXTRA
        message = f"its files hold {held} channels where the model needs {channels}"
        faults.append(Fault(code=code, message=message, case=case.case, file=case.images[-1].name))
    if not faults:
        members = [Member(name=path.name, volume=volume) for path, volume in zip(case.images, volumes, strict=True)]
        faults += disagreements(members, case=case.case)
    if faults:
        raise DataError("; ".join(f"{fault.code} [{fault.file}]: {fault.message}" for fault in faults), faults=faults)
    return tuple(fault for volume in volumes for fault in volume.faults)
