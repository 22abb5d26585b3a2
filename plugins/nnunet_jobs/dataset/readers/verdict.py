"""Explains why a case's files cannot be used, as registration does, for steps whose reader refused them without a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.readers.agreement import Member, disagreements
from nnunet_jobs.dataset.readers.formats import read_volume


def errors_of(
    images: Sequence[Path], label: Path | None, *, case: str, reader: str, beat: Callable[[], None] = lambda: None
) -> list[Fault]:
    """Return all errors of a case's files, each alone and against the others; none if registration would accept them.

    Args:
        images: One file a channel.
        label: Label image, if there is one.
        case: Id, for the faults.
        reader: Class name of nnU-Net's reader.
        beat: Called for each MiB; may raise to stop.
    """
    files = [(path, False) for path in images] + ([(label, True)] if label is not None else [])
    members = [
        Member(
            name=path.name,
            volume=read_volume(path, case=case, name=path.name, label=is_label, beat=beat, reader=reader),
            label=is_label,
        )
        for path, is_label in files
    ]
    own = [fault for member in members for fault in member.volume.faults if fault.severity == "error"]
    return own + disagreements(members, case=case)
