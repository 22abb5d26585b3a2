"""Keeps tombstones, so that withdrawn cases cannot be registered again, and reads what versions and models record about them.

A tombstone has a case id, hashes of the images and a hash of the group, but nothing that identifies the patient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nnunet_jobs.contract.failure import ConfigError, Interrupted
from nnunet_jobs.contract.steps.base import StepParams
from nnunet_jobs.contract.storage.files import content_hash, read_json, write_json
from nnunet_jobs.contract.storage.workspace import DATASET_NAME, Workspace

SCHEMA = 1
MARK = "withdrawn.json"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawParams(StepParams):
    """Remove cases from a dataset because consent was withdrawn.

    Attributes:
        dataset: Dataset id or full name, such as ``4`` or ``Dataset004_Hippocampus``.
        cases: Case ids.
        groups: Patients, whose present and later cases are all withdrawn.
        reason: Reason for the history; never patient data.
        dry_run: Only say what would be removed.
        restore: Lift an earlier withdrawal instead.
        predictions: Delete the cases' predictions below ``output_roots`` too.
        demote: Demote the champion if it was trained on the cases.
    """

    step: ClassVar[str] = "withdraw"

    dataset: str
    cases: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    reason: str | None = None
    dry_run: bool = False
    restore: bool = False
    predictions: bool = False
    demote: bool = False

    def _check(self) -> None:
        self.require(bool(self.cases or self.groups), "cases", "name at least one case or group")
        self.require(self.reason is None or (self.reason.isprintable() and len(self.reason) <= 200), "reason", "one line of at most 200")


class Tombstones:
    """Holds the withdrawn cases and groups of one dataset. Change them only while holding the dataset's registration lock.

    ``cases`` maps an id to ``at``, ``by``, ``reason``, ``images`` and ``labels`` (sha256 to size in bytes), ``group`` (hash) and
    ``complete``.
    ``groups`` maps the hash of a group to ``at``, ``by`` and ``reason``.

    Raises:
        ConfigError: The file exists and cannot be read. Without it, withdrawn cases could be registered again.
    """

    def __init__(self, workspace: Workspace, dataset: str) -> None:
        self.dataset = dataset
        self.path = Path(workspace.raw) / ".state" / f"{dataset}.withdrawn.json"
        try:
            data = read_json(self.path)
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}")
            self.cases: dict[str, dict[str, Any]] = data["cases"]
            self.groups: dict[str, dict[str, Any]] = data["groups"]
        except FileNotFoundError:
            self.cases, self.groups = {}, {}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}: is damaged ({error}); restore it from a backup, it keeps withdrawn cases out") from error

    @property
    def images(self) -> frozenset[str]:
        """Return the sha256 of every image of a withdrawn case."""
        return frozenset(digest for stone in self.cases.values() for digest in stone["images"])

    def incomplete(self) -> list[str]:
        """Return the cases whose withdrawal was interrupted."""
        return sorted(case for case, stone in self.cases.items() if not stone["complete"])

    def group_key(self, group: str) -> str:
        """Return the key of a group, which is a hash."""
        return content_hash([self.dataset, group], length=32)

    def save(self) -> None:
        """Write the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"schema": SCHEMA, "cases": self.cases, "groups": self.groups})


def images_withdrawn_elsewhere(workspace: Workspace, dataset: str) -> dict[str, str]:
    """Map an image's sha256 to the other dataset of the workspace from which it was withdrawn."""
    found: dict[str, str] = {}
    for path in sorted((Path(workspace.raw) / ".state").glob("Dataset*.withdrawn.json")):
        name = path.name.removesuffix(".withdrawn.json")
        if name != dataset and DATASET_NAME.fullmatch(name):
            found |= dict.fromkeys(Tombstones(workspace, name).images, name)
    return found


# --- versions ---------------------------------------------------------------------------------------------------------
def withdrawn_from(version_folder: Path) -> dict[str, dict[str, Any]]:
    """Return cases withdrawn from a preprocessed version: id to ``at``, ``train`` and ``val`` (folds in which the case was).

    Args:
        version_folder: ``.versions/<v>/DatasetXXX_Name``; a folder from elsewhere has no record and no withdrawn
            cases.
    """
    try:
        found: dict[str, dict[str, Any]] = read_json(version_folder / "version.json").get("withdrawn", {})
    except FileNotFoundError:
        return {}
    return found


def require_none_withdrawn(version_folder: Path) -> None:
    """Refuse to work on a version from which cases were withdrawn.

    Raises:
        ConfigError: There are such cases; the message names version, cases and the fix.
    """
    withdrawn = withdrawn_from(version_folder)
    if withdrawn:
        latest = max(str(entry["at"]) for entry in withdrawn.values())[:10]
        raise ConfigError(
            field="version",
            value=version_folder.parent.name,
            problem=f"{listed(withdrawn)} withdrawn from {version_folder.name} (last on {latest})",
            fix="run PreprocessOperator again and train on the version that it makes",
        )


@contextlib.contextmanager
def only_consented(version_folder: Path) -> Iterator[None]:
    """Refuse a version with withdrawn cases, also if one is withdrawn during the block, which then raises the ConfigError."""
    require_none_withdrawn(version_folder)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        try:
            require_none_withdrawn(version_folder)
        except ConfigError as reason:
            raise reason from error
        raise
    require_none_withdrawn(version_folder)


# --- models -----------------------------------------------------------------------------------------------------------
def trained_on_withdrawn(model_folder: Path) -> dict[str, dict[str, Any]]:
    """Return withdrawn cases that a model has seen: id to ``at`` and ``configurations`` (name to folds trained on the case).

    Args:
        model_folder: ``nnUNet_results/.versions/<model>/DatasetXXX_Name``.
    """
    try:
        cases: dict[str, dict[str, Any]] = read_json(model_folder / MARK)["cases"]
    except FileNotFoundError:
        return {}
    return cases


def listed(cases: Iterable[str] | Mapping[str, Any]) -> str:
    """List cases for a message, such as ``2 cases (a, b) were``."""
    names = sorted(cases)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"case {shown} was" if len(names) == 1 else f"{len(names)} cases ({shown}) were"
