"""Checks names, kinds, sizes and link targets of an archive's entries before anything is written. Nothing here uses the disk."""

from __future__ import annotations

import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dicom.mark import named_like
from nnunet_jobs.faults.codes import Code
from nnunet_jobs.faults.fixes import FAULT_INFO

_MAX_NAME, _MAX_PATH = 255, 2000  # bytes; the limits of Linux file systems, less room for the folder to unpack into
_DRIVE = re.compile(r"[A-Za-z]:")
_LINKS = 40  # links that point to further links; Linux follows as many
_JUNK = ("__MACOSX", ".DS_Store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much an archive may hold. The defaults are far above what medical datasets need and far below what fills a disk.

    Attributes:
        entries: Number of entries.
        unpacked: Unpacked bytes in total.
        ratio: Unpacked to packed bytes, checked from ``allowance`` bytes on: label maps shrink to a thousandth, but
            never a dataset as a whole.
    """

    entries: int = 1_000_000
    unpacked: int = 4 << 40
    ratio: float = 100.0
    allowance: int = 1 << 30

    def bytes_for(self, packed: int) -> int:
        """Return the most bytes that an archive of ``packed`` bytes may unpack to."""
        return min(self.unpacked, max(self.allowance, int(self.ratio * packed)))


@dataclass(slots=True, kw_only=True)
class Entries:
    """Collects the entries admitted so far and every fault of the others.

    Attributes:
        limits: How much the archive may hold.
        packed: Bytes of the archive.
        files: Path to size.
        folders: Paths, parents included.
        links: Path to (target, whether the target is relative to the link's own folder).
        faults: Faults of all entries.
        dicom: Whether one of them is a DICOM file, by name or content.
    """

    limits: Limits
    packed: int
    files: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    links: dict[str, tuple[str, bool]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    count: int = 0
    size: int = 0
    dicom: bool = False
    _spelled: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether the archive holds more than it may, so that further entries need no check."""
        return bool(self.faults) and self.faults[-1].code == Code.ARCHIVE_TOO_LARGE

    def fault(self, name: str, message: str, code: Code = Code.ARCHIVE_UNSAFE) -> None:
        """Record what is wrong with an entry."""
        self.dicom |= named_like(name)
        self.faults.append(Fault(code=code, file=name[:200], message=message))

    def reported(self) -> list[Fault]:
        """Return the faults; where there are DICOM files, one for each code, with the number of entries instead of names."""
        if not self.dicom:
            return self.faults
        counts = Counter(str(fault.code) for fault in self.faults)
        return [
            Fault(
                code=code,
                message=f"{count} {'entry' if count == 1 else 'entries'}, not named here since the archive holds DICOM files: "
                f"{FAULT_INFO[Code(code)].what} {FAULT_INFO[Code(code)].fix}",
            )
            for code, count in counts.items()
        ]

    def folder(self, name: str) -> None:
        """Admit a folder."""
        path = self._admit(name, 0)
        if path and self._place(name, path):
            self.folders.add(path)

    def file(self, name: str, size: int) -> str | None:
        """Admit a file of ``size`` bytes; return the path to write it to, or None if it is refused or added by macOS."""
        path = self._admit(name, size)
        if not path or _is_junk(path) or not self._place(name, path):
            return None
        self.files[path] = size
        return path

    def link(self, name: str, target: str, *, relative: bool) -> None:
        """Admit a link for now; :meth:`resolved` checks where it leads."""
        path = self._admit(name, 0)
        if path and not _is_junk(path) and self._place(name, path):
            self.links[path] = (target, relative)

    def special(self, name: str, what: str) -> None:
        """Refuse an entry that is not a file, folder or link."""
        self.fault(name, f"is {what}; only files, folders and links are unpacked")

    def resolved(self) -> Iterator[tuple[str, str]]:
        """Yield each link with the file or folder in the archive that it leads to; links that lead elsewhere become faults."""
        for path in sorted(self.links):
            end = self._follow(path)
            if end is not None:
                yield path, end

    def _follow(self, path: str) -> str | None:
        here = path
        for _ in range(_LINKS):
            target, relative = self.links[here]
            joined = posixpath.normpath(posixpath.join(posixpath.dirname(here) if relative else "", target))
            if target.startswith("/") or _DRIVE.match(target) or "\\" in target or joined.split("/")[0] == "..":
                self.fault(path, "is a link that leaves the archive; pack the file itself (tar -h, zip without -y)")
                return None
            if joined in self.files or joined in self.folders:
                return joined
            if joined not in self.links:
                self.fault(path, "is a link to something that the archive does not hold; pack the file itself (tar -h, zip without -y)")
                return None
            here = joined
        self.fault(path, "is a link that leads back to itself")
        return None

    def _admit(self, name: str, size: int) -> str | None:
        """Return the entry's normalised path, or None with a fault."""
        self.dicom |= named_like(name)
        self.count += 1
        self.size += size
        if self.count > self.limits.entries:
            self.fault(name, f"is entry number {self.count}; at most {self.limits.entries} are unpacked", Code.ARCHIVE_TOO_LARGE)
            return None
        allowed = self.limits.bytes_for(self.packed)
        if self.size > allowed:
            much = f"with it the archive of {self.packed} bytes would unpack to {self.size}, more than {allowed}"
            self.fault(name, f"{much}; unpack it by hand if it is sound", Code.ARCHIVE_TOO_LARGE)
            return None
        reason = _unsafe(name)
        if reason:
            self.fault(name, f"{reason}; pack the dataset again")
            return None
        return str(PurePosixPath(name))

    def _place(self, name: str, path: str) -> bool:
        """Whether the path is free and fits the others, also on file systems that ignore case."""
        if path == ".":
            return False
        known = path in self.files or path in self.links
        if known or (path in self.folders and not name.endswith("/")):
            self.fault(name, "is there twice; keep one")
            return False
        for part in (path, *map(str, PurePosixPath(path).parents[:-1])):
            other = self._spelled.setdefault(unicodedata.normalize("NFKC", part).casefold(), part)
            if other != part:
                self.fault(name, f"differs only by upper and lower case or Unicode form from {other!r}; rename one")
                return False
            if part != path and (part in self.files or part in self.links):
                self.fault(name, f"lies below {part!r}, which is not a folder")
                return False
        self.folders.update(str(parent) for parent in PurePosixPath(path).parents[:-1])
        return True


def _is_junk(path: str) -> bool:
    """Whether macOS added the file itself, so that it is not part of the dataset."""
    return any(part in _JUNK or part.startswith("._") for part in PurePosixPath(path).parts)


def _unsafe(name: str) -> str | None:
    encoded = name.encode("utf-8", "surrogatepass")
    if not name or not name.isprintable():
        return "has an empty name, control characters or a name that is not UTF-8"
    if name.startswith("/") or _DRIVE.match(name):
        return "has an absolute path"
    if "\\" in name:
        return "has a backslash in its name"
    if ".." in name.split("/"):
        return "has '..' in its path"
    if len(encoded) > _MAX_PATH or any(len(part) > _MAX_NAME for part in encoded.split(b"/")):
        return "has a name that is too long for file systems"
    return None


def kind_of_mode(mode: int) -> str | None:
    """Name the kind of a Unix file mode that is not a file, folder or link; None for those three and for no mode."""
    kinds = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode))
