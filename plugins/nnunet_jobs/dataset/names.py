"""Checks names and paths of a source: which may become a case id, and which stay below the source's folder."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.faults.codes import Code

NIFTI = (".nii.gz", ".nii")
PICTURES = (".png", ".bmp", ".tif")  # 2D for nnU-Net, and one file may hold several channels as colours
ENDINGS = (*NIFTI, ".mha", ".nrrd", *PICTURES, ".tiff")
_FOREIGN = re.compile(
    r"(?i)(?:\.nii\.(?:bz2|zst|xz|zip)|\.(?:jpe?g|jp2|j2k|jxl|gif|webp|heic|dcm|ima|img|hdr|mhd|raw|nhdr|mgz|mgh|mnc|npy|npz|h5|hdf5|mat|svs|gipl"
    r"|nii|nii\.gz|mha|nrrd|png|bmp|tiff?))$"  # the last are read, but not with capital letters
)
_CASE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,118}[A-Za-z0-9_-])?")  # no dot at the end: Windows and SMB shares drop it
_OF_LABELS = "_seg"  # ends nnU-Net's preprocessed labels: case "a_seg" would not be trained, and could overwrite a's label


class UnusableName(Exception):
    """A path or name of the source must not be used; carries the fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


def split_ending(name: str) -> tuple[str, str]:
    """Split ``case.nii.gz`` into ``("case", ".nii.gz")``; the ending is empty for anything that nnU-Net does not read."""
    for ending in ENDINGS:
        if name.endswith(ending):
            return name[: -len(ending)], ending
    return name, ""


def foreign_ending(name: str) -> str:
    """Return the ending of an image file that nnU-Net does not read, judged by its name; empty for any other file."""
    match = _FOREIGN.search(name)
    return match[0] if match else ""


def below(root: Path, text: str, *, case: str | None = None) -> Path:
    """Return the path of a file that a ``dataset.json`` names; it must stay below ``root``, also after symbolic links.

    Absolute paths, ``..``, ``~`` and environment variables are refused: nnU-Net itself would follow them anywhere.

    Args:
        root: Resolved folder of the source.
        text: What the file says, such as ``./imagesTr/a.nii.gz``.
        case: Named in the fault.

    Raises:
        UnusableName: It leaves the source, or could.
    """
    reason = None
    if not text or not text.isprintable():
        reason = "is empty or has unprintable characters"
    elif os.path.isabs(text) or text.startswith("~"):
        reason = "is absolute; only paths relative to the source are followed"
    elif ".." in PurePosixPath(text).parts:
        reason = "has '..'; only paths below the source are followed"
    elif "$" in text:
        reason = "has '$'; environment variables are not followed"
    if reason:
        raise UnusableName(
            Fault(code=Code.PATH_OUTSIDE, case=case, file=text, message=f"path {reason}; name the file relative to the source")
        )
    path = root / text
    check_links(root, path, case=case)
    return path


def check_links(root: Path, path: Path, *, case: str | None = None) -> None:
    """Follow symbolic links and refuse a path that ends outside ``root``."""
    resolved = Path(os.path.realpath(path))
    if not resolved.is_relative_to(root):
        name = os.path.relpath(path, root)
        fix = "copy the file into the source, or name a source folder that holds both"
        raise UnusableName(Fault(code=Code.PATH_OUTSIDE, case=case, file=name, message=f"link leaves the source ({resolved}); {fix}"))


def broken_link(path: Path) -> bool:
    """Whether a path is a broken or circular link."""
    return path.is_symlink() and not os.path.exists(path)


def listing(root: Path, folder: Path, faults: list[Fault]) -> list[str]:
    """Return the sorted names in a folder of the source; leave out hidden files (such as macOS's ``._*``), report stray links."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                try:
                    check_links(root, Path(entry.path))
                except UnusableName as refused:
                    faults.append(refused.fault)
                    continue
            if not _is_folder(entry):
                names.append(entry.name)
    return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link: the file's reader reports it
        return False


def usable(case: str) -> bool:
    """Whether a case id is safe for file systems, shells and nnU-Net."""
    return bool(_CASE.fullmatch(case)) and not case.endswith(_OF_LABELS)


def folded(case: str) -> str:
    """Return a form that is equal for ids that differ only by upper and lower case or Unicode form."""
    return unicodedata.normalize("NFKC", case).casefold()


def without_sidecars(names: list[str]) -> list[str]:
    """Return the names without the ``<case>.json`` files that hold the spacing of 3D TIFF images and labels."""
    tiffs = {re.sub(r"_\d{4}$", "", split_ending(name)[0]) for name in names if name.endswith((".tif", ".tiff"))}
    return [name for name in names if not (name.endswith(".json") and name[: -len(".json")] in tiffs)]


def check_case_ids(cases: Iterable[str], *, known: Iterable[str] = ()) -> list[Fault]:
    """Return the faults of ids that are not safe to use, and of ids that differ only by case or Unicode form.

    Args:
        cases: Ids of the source, each once.
        known: Ids that are registered already.
    """
    faults = []
    alike: dict[str, set[str]] = {}
    source = list(cases)
    for case in (*source, *known):
        alike.setdefault(folded(case), set()).add(case)
    for case in source:
        if not usable(case):
            fix = (
                "rename the file: letters, digits, '_', '-' and '.', at most 120, starting with a letter or digit, "
                "not ending with '.' or '_seg'"
            )
            message = f"case id {case!r} is not usable; {fix}; or set rename: true"
            faults.append(Fault(code=Code.NAME_INVALID, case=case, message=message))
        others = alike[folded(case)] - {case}
        if others:
            names = ", ".join(map(repr, sorted(others)))
            message = f"differs only by upper and lower case or Unicode form from {names}; rename one, or set rename: true"
            faults.append(Fault(code=Code.NAME_CLASH, case=case, message=message))
    return faults
