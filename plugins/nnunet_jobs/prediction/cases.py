"""A case to predict: its id and its images, each checked to the last byte before any reader that forgives too much sees it."""

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
    """One case: its id, one image a channel, the label where it is known, and why it cannot be predicted at all.

    ``converted``: the images were written by the job itself, so that one that is missing is the job's fault and not the case's.
    ``warnings``: what is odd about it and does not forbid it; they become flags.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None = None
    problem: str | None = None
    converted: bool = False
    warnings: tuple[Fault, ...] = ()


def checked_case_id(case: str, *, field: str) -> str:
    """The id, if it is safe as a file name.

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
    """Read every image to its last byte and refuse what nnU-Net's reader would take without a word.

    SimpleITK fills a truncated file with zeros, turns NaN into 0 and stops before a gzip checksum, so each file is first read
    as registration reads it. Endings that registration does not know are left to nnU-Net's own reader.

    Args:
        channels: Channels that the files must hold together, where colours are channels.
        reader: Class name of nnU-Net's reader of the model.
        beat: Called for each MiB; may raise to stop.
        reserve: Called with the bytes that an image needs before it is read; may raise MemoryError.

    Returns:
        What is odd and does not forbid the case, as registration warns of it.

    Raises:
        DataError: With all faults of the case.
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
