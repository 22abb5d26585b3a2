"""Parses BIDS file names, matches them against rules, and finds the files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.dataset.names import UnusableName, broken_link, check_links, listing, split_ending
from nnunet_jobs.faults.codes import Code

CASE = ("sub", "ses", "run")  # entities that identify a case; the others distinguish images of one case


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A file and what its name says: entities such as ``{"sub": "01"}``, and the suffix."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def case(self) -> str:
        """Return the case id, such as ``sub-01``, ``sub-01_ses-02`` or ``sub-01_ses-02_run-1``."""
        return "_".join(f"{key}-{self.entities[key]}" for key in CASE if key in self.entities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a file name must have: a suffix, and optionally entities."""

    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, text: str) -> Rule:
        """Parse a rule such as ``ce-gadolinium_T1w``."""
        *parts, suffix = text.split("_")
        return cls(entities=dict(part.split("-", 1) for part in parts if "-" in part), suffix=suffix)

    def holds(self, named: Named) -> bool:
        """Whether the rule matches a file. The suffix ignores case: nnU-Net expects ``CT`` where BIDS writes ``ct``."""
        return named.suffix.casefold() == self.suffix.casefold() and self.entities.items() <= named.entities.items()

    def just(self, named: Named) -> bool:
        """Whether a file's name has no entities other than those of the rule and of the case."""
        return {key for key in named.entities if key not in CASE} == {key for key in self.entities if key not in CASE}


def take_apart(path: Path) -> Named | None:
    """Parse a file's name; return None if it is not an image named by BIDS' rules."""
    stem, ending = split_ending(path.name)
    *parts, suffix = stem.split("_")
    pairs = [part.partition("-") for part in parts]
    if not ending or not suffix or not all(key and dash and value for key, dash, value in pairs):
        return None
    entities = {key: value for key, _, value in pairs}
    return Named(path=path, entities=entities, suffix=suffix) if "sub" in entities and len(entities) == len(pairs) else None


def subfolders(root: Path, folder: Path, faults: list[Fault], prefix: str = "") -> Iterator[Path]:
    """Yield visible folders in a folder, by name; add a fault for a link that leaves the source."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.name.startswith(prefix):
            continue
        if broken_link(path) and not split_ending(path.name)[1]:
            message = "is a broken or circular link; copy the folder itself"
            faults.append(Fault(code=Code.IMAGE_MISSING, file=str(path.relative_to(root)), message=message))
        if not os.path.isdir(path):
            continue
        try:
            check_links(root, path)
        except UnusableName as refused:
            faults.append(refused.fault)
            continue
        yield path


def files(root: Path, top: Path, faults: list[Fault]) -> Iterator[Named]:
    """Yield images below ``sub-*/[ses-*/]<data type>/`` by name; add a fault for one in another subject's folder."""
    for subject in subfolders(root, top, faults, "sub-"):
        sessions = list(subfolders(root, subject, faults, "ses-"))
        for holder in [subject, *sessions]:
            expected = holder.relative_to(top).parts
            for folder in subfolders(root, holder, faults):
                if folder in sessions:
                    continue
                for name in listing(root, folder, faults):
                    named = take_apart(folder / name)
                    if named is None:
                        continue
                    own = [f"{key}-{named.entities[key]}" for key in ("sub", "ses") if key in named.entities]
                    if tuple(own) != expected:
                        message = f"the name says {'_'.join(own)}, the folder {'/'.join(expected)}; put the file into its subject's folder"
                        faults.append(Fault(code=Code.NAME_UNMATCHED, file=str(named.path.relative_to(root)), message=message))
                        continue
                    yield named
