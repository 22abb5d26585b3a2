"""Builds the new state of a dataset's folder beside it and swaps it in by one rename, so that no reader sees half of it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError, Fault
from nnunet_jobs.contract.storage.files import write_atomic, write_json
from nnunet_jobs.contract.storage.workspace import MANIFEST
from nnunet_jobs.dataset.manifest import HashCache, files_of, folders_of, sidecars_of
from nnunet_jobs.dataset.names import split_ending
from nnunet_jobs.dataset.own_splits import OWN_SPLITS
from nnunet_jobs.dataset.readers.volume import hash_file
from nnunet_jobs.dataset.transfer import NOT_HERE, SourceChanged, link_or_copy, place, recode, swap_in
from nnunet_jobs.dataset.validate import CheckedCase
from nnunet_jobs.faults.codes import Code

log = logging.getLogger("nnunet_jobs")
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
_OURS = {*_FOLDERS, "dataset.json", MANIFEST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Manages a dataset's folder in nnUNet_raw and the hidden folder where its next state is built."""

    folder: Path

    @property
    def staging(self) -> Path:
        """Return where the next state is built: one fixed name, so that files of a killed run are found and used."""
        return self.folder.with_name(f".{self.folder.name}.staging")

    def damaged(self, cases: Mapping[str, Mapping[str, Any]], ending: str, cache: HashCache, beat: Callable[[], None]) -> set[str]:
        """Return cases whose registered files are missing or differ from the manifest."""
        found = set()
        for case, entry in cases.items():
            for name, sha256 in files_of(case, entry, ending).items():
                try:
                    if cache.sha256(self.folder / name, beat) == sha256:
                        continue
                except OSError as error:
                    log.warning("registered file %s cannot be read: %s", name, error.strerror)
                found.add(case)
        return found

    def check_strays(self, cases: Mapping[str, Mapping[str, Any]], ending: str) -> None:
        """Refuse files among the cases that are not in the manifest, since nnU-Net would use them as cases.

        Raises:
            ConfigError: There are such files; the message names them.
        """
        known = {name for case, entry in cases.items() for name in files_of(case, entry, ending)}
        present = {f"{sub}/{path.name}" for sub in _FOLDERS if (self.folder / sub).is_dir() for path in (self.folder / sub).iterdir()}
        strays = sorted(name for name in present - known if not Path(name).name.startswith("."))
        if strays:
            shown = ", ".join(strays[:5]) + (f" and {len(strays) - 5} more" if len(strays) > 5 else "")
            raise ConfigError(f"{self.folder} holds files that no registration put there ({shown}); move them away, or into the source")

    def begin(self, expected: set[str], cases: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the staging folder; of a killed run's files only useful ones stay, and none of another user."""
        if self.staging.is_dir() and self.staging.stat().st_uid != os.geteuid():
            self.abandon()  # only the owner can set modes and times of folders
        if self.staging.is_dir():
            for parent, _, names in os.walk(self.staging):
                for name in names:
                    path = Path(parent, name)
                    if str(path.relative_to(self.staging)) not in expected:
                        path.unlink()
        for folder in folders_of(cases.values()):
            (self.staging / folder).mkdir(parents=True, exist_ok=True)
        for extra in self.folder.iterdir() if self.folder.is_dir() else ():
            if extra.name not in _OURS and extra.is_dir():
                shutil.copytree(extra, self.staging / extra.name, symlinks=True, copy_function=_carry, dirs_exist_ok=True)
            elif extra.name not in _OURS:
                _carry(str(extra), str(self.staging / extra.name))

    def carry_over(self, case: str, old: Mapping[str, Any], new: Mapping[str, Any], ending: str) -> None:
        """Link an unchanged case's files into the staging folder by hard link."""
        for before, after in zip(files_of(case, old, ending), files_of(case, new, ending), strict=True):
            _carry(str(self.folder / before), str(self.staging / after))

    def bring(
        self, checked: CheckedCase, split: str, ending: str, *, method: str, beat: Callable[[], None]
    ) -> tuple[list[str], str | None, list[Fault]]:
        """Bring a new or changed case's files into the staging folder. Returns image hashes, label hash and faults."""
        case, faults = checked.case, list[Fault]()
        count = len(checked.component)
        blank: dict[str, Any] = {"split": split, "images": [""] * count, "label": "" if case.label else None}
        targets = [self.staging / name for name in files_of(case.case, blank, ending)]
        jobs = [
            (case.images[channel if component is None else 0], checked.hashes[channel if component is None else 0], component)
            for channel, component in enumerate(checked.component)
        ]
        if case.label and checked.label_hash:
            jobs.append((case.label, checked.label_hash, None))
        hashes = []
        for (source, sha256, component), target in zip(jobs, targets, strict=True):
            try:
                hashes.append(_bring(source, target, sha256, component, ending, method, beat))
            except (SourceChanged, FileNotFoundError):
                message = "changed while it was being registered; run again when the source no longer changes"
                faults.append(Fault(code=Code.SOURCE_CHANGED, case=case.case, file=source.name, message=message))
        if faults:
            return [], None, faults
        for name, content in sidecars_of(case.case, {**blank, "shape": checked.shape, "spacing": checked.spacing}, ending).items():
            write_atomic(self.staging / name, content)
        return hashes[:count], hashes[count] if case.label else None, []

    def commit(self, manifest: Mapping[str, Any], description: Mapping[str, Any], *, splits: Any = None) -> None:
        """Write ``dataset.json``, ``manifest.json`` and, if the source has its own, ``splits_final.json``; swap the folder in."""
        if splits is not None:
            write_json(self.staging / OWN_SPLITS, splits)
        write_json(self.staging / "dataset.json", description)
        write_json(self.staging / MANIFEST, manifest)
        swap_in(self.staging, self.folder)

    def abandon(self) -> None:
        """Remove the staging folder."""
        shutil.rmtree(self.staging, ignore_errors=True)


def _bring(source: Path, target: Path, sha256: str, component: int | None, ending: str, method: str, beat: Callable[[], None]) -> str:
    if component is not None or split_ending(source.name)[1] != ending:
        return recode(source, target, sha256=sha256, component=component, beat=beat)
    if target.exists() and hash_file(target, beat) == sha256:
        return sha256  # a killed run has brought it already
    try:
        place(source, target, sha256=sha256, method=method, beat=beat)
    except OSError as error:
        if method in ("reflink", "hardlink") and error.errno in NOT_HERE:
            where = f"from {source.parent} to {target.parent.parent.parent}"
            raise ConfigError(
                field="transfer", value=method, problem=f"does not work {where} ({error.strerror})", fix="use auto or copy"
            ) from error
        raise
    return sha256


def _carry(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    link_or_copy(Path(source), Path(target))
