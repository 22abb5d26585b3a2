"""Defines the workspace: its roots, immutable versions and links to the current ones, and confinement of user paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import read_json

DATASET_NAME = re.compile(r"Dataset(\d{3,})_([A-Za-z0-9][A-Za-z0-9_-]{0,99})")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
VERSIONS = ".versions"
MANIFEST = "manifest.json"
MODEL_CARD = "model.json"
FINAL_CHECKPOINT = "checkpoint_final.pth"
"""nnU-Net's file name of a fold's trained network."""
SHARED_ROOTS = ("raw", "preprocessed", "results")
"""The roots that nnU-Net itself knows."""
WRITTEN_ROOTS = (*SHARED_ROOTS, "jobs")
"""The roots of one team, which all hosts share."""
ROOTS = (*WRITTEN_ROOTS, "leases")
"""All roots that are a single folder in a workspace."""
SHARING: dict[str, int] = {"private": 0o077, "group": 0o007, "group_others_read": 0o002}
"""Maps a value of ``sharing`` to its umask. With ``private``, only the user of a job may use new files."""


def dataset_name(dataset_id: int, name: str) -> str:
    """Return nnU-Net's folder name of a dataset, ``Dataset004_Hippocampus`` for 4 and ``Hippocampus``.

    Raises:
        ConfigError: The id is not between 1 and 99999, or the name has characters that are not safe.
    """
    if not 1 <= dataset_id <= 99_999:
        raise ConfigError(field="dataset_id", value=dataset_id, problem="must be between 1 and 99999")
    full = f"Dataset{dataset_id:03d}_{name}"
    if not DATASET_NAME.fullmatch(full):
        raise ConfigError(
            field="name", value=name, problem="use letters, digits, '_' and '-', starting with a letter or digit, at most 100"
        )
    return full


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """The roots of one team's work. All steps of a pipeline share one workspace.

    Attributes:
        raw: Folder nnUNet_raw.
        preprocessed: Folder nnUNet_preprocessed.
        results: Folder nnUNet_results.
        jobs: Folder of the job directories.
        leases: Folder of the GPU and CPU lease ledger, on a local disk of each host.
        input_roots: Users may only name input paths below these (and below the workspace's own roots).
        output_roots: Users may only name output paths below these.
        trainer_paths: Folders with user trainer classes (nnU-Net's external-trainer mechanism).
        cpu_slots: Number of jobs that may compute at the same time on a host without a GPU.
        sharing: ``private`` (only their owner may use new files and folders, 0600 and 0700), ``group`` (the folder's
            group may write them, others get no access) or ``group_others_read``.
    """

    raw: str
    preprocessed: str
    results: str
    jobs: str
    leases: str
    input_roots: tuple[str, ...] = ()
    output_roots: tuple[str, ...] = ()
    trainer_paths: tuple[str, ...] = ()
    cpu_slots: int = 1
    sharing: str = "private"

    def __post_init__(self) -> None:
        for field in ROOTS:
            value = getattr(self, field)
            if not value or not os.path.isabs(value):
                raise ConfigError(
                    where="workspace", field=field, value=value, problem="must be an absolute path", fix="set it in section [nnunet]"
                )
        for field in ("input_roots", "output_roots", "trainer_paths"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
            for value in getattr(self, field):
                if not os.path.isabs(value):
                    raise ConfigError(where="workspace", field=field, value=value, problem="must be absolute paths")
        if self.cpu_slots < 1:
            raise ConfigError(where="workspace", field="cpu_slots", value=self.cpu_slots, problem="must be 1 or more")
        if self.sharing not in SHARING:
            raise ConfigError(where="workspace", field="sharing", value=self.sharing, problem=f"must be {', '.join(SHARING)}")

    @classmethod
    def below(cls, root: str | Path, **overrides: Any) -> Workspace:
        """Return the usual layout below one folder; ``overrides`` replace single roots."""
        base = Path(root).absolute()
        paths: dict[str, Any] = {
            "raw": str(base / "nnUNet_raw"),
            "preprocessed": str(base / "nnUNet_preprocessed"),
            "results": str(base / "nnUNet_results"),
            "jobs": str(base / "jobs"),
            "leases": str(base / "leases"),
            "output_roots": (str(base / "predictions"),),
        }
        paths.update({key: value for key, value in overrides.items() if value})
        return cls(**paths)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Workspace:
        """Read what :meth:`to_json` wrote. Roots that this version does not know are ignored."""
        return cls(**{item.name: data[item.name] for item in fields(cls) if item.name in data})

    # --- datasets -----------------------------------------------------------------------------------------------
    def datasets(self) -> dict[int, str]:
        """Return registered datasets by id. Ids are compared as numbers, so 100 never matches 1000."""
        found: dict[int, str] = {}
        root = Path(self.raw)
        for entry in sorted(root.iterdir()) if root.is_dir() else ():
            match = DATASET_NAME.fullmatch(entry.name)
            if match and entry.is_dir():
                found.setdefault(int(match[1]), entry.name)
        return found

    def resolve_dataset(self, dataset: str | int) -> str:
        """Return the full name of a registered dataset, given its id (``4``, ``"4"``) or full name.

        Raises:
            ConfigError: No dataset of that id or name is registered.
        """
        text = str(dataset)
        known = self.datasets()
        if text.isascii() and text.isdigit():
            if int(text) in known:
                return known[int(text)]
        elif DATASET_NAME.fullmatch(text) and text in known.values():
            return text
        names = ", ".join(known.values()) or "none"
        raise ConfigError(
            field="dataset", value=dataset, problem=f"not registered in {self.raw}. Registered: {names}. Run RegisterDatasetOperator first"
        )

    def raw_dataset(self, name: str) -> Path:
        """``nnUNet_raw/DatasetXXX_Name``."""
        return Path(self.raw) / name

    def manifest(self, name: str) -> dict[str, Any]:
        """Read the dataset's ``manifest.json``."""
        path = self.raw_dataset(name) / MANIFEST
        if not path.is_file():
            raise ConfigError(
                field="dataset", value=name, problem=f"{path} is missing", fix="register the dataset with RegisterDatasetOperator"
            )
        data: dict[str, Any] = read_json(path)
        return data

    @property
    def private(self) -> Path:
        """Return the folder, readable for its owner only, of the site's key and the mapping of case ids to patients."""
        return Path(self.raw) / ".private"

    # --- preprocessed versions ----------------------------------------------------------------------------------
    def preprocessed_root(self, version: str) -> Path:
        """Return what ``nnUNet_preprocessed`` points to while version ``version`` is used."""
        return Path(self.preprocessed) / VERSIONS / _checked(version, "version")

    def preprocessed_link(self, name: str) -> Path:
        """Return the link to a dataset's current preprocessed version."""
        return Path(self.preprocessed) / name

    def current_version(self, name: str) -> str | None:
        """Return the version that the link points to; None before the first preprocessing."""
        return _linked(self.preprocessed_link(name))

    # --- models -------------------------------------------------------------------------------------------------
    def model_root(self, model: str) -> Path:
        """Return what ``nnUNet_results`` points to while model ``model`` is trained or used."""
        return Path(self.results) / VERSIONS / _checked(model, "model")

    def champion_link(self, name: str) -> Path:
        """Return the link to a dataset's promoted model."""
        return Path(self.results) / name

    def champion(self, name: str) -> str | None:
        """Return the promoted model of a dataset; None before the first promotion."""
        return _linked(self.champion_link(name))

    def model_cards(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (model, card) of every selected model of a dataset."""
        for path in sorted((Path(self.results) / VERSIONS).glob(f"*/{name}/{MODEL_CARD}")):
            yield path.parent.parent.name, read_json(path)

    def model_card(self, name: str, model: str) -> dict[str, Any]:
        """Read the card of one model.

        Raises:
            ConfigError: The model has no card, so it was never selected by FindBestConfigOperator.
        """
        path = self.model_root(model) / name / MODEL_CARD
        if not path.is_file():
            raise ConfigError(field="model", value=model, problem=f"{path} is missing", fix=f"run FindBestConfigOperator for {name} first")
        card: dict[str, Any] = read_json(path)
        return card

    @property
    def source_roots(self) -> tuple[str, ...]:
        """Return the input roots outside the workspace; names below them may identify patients and are never shown."""
        own = [os.path.realpath(path) for path in (self.raw, self.preprocessed, self.results, self.jobs, *self.output_roots)]
        return tuple(root for root in self.input_roots if not any(Path(path).is_relative_to(os.path.realpath(root)) for path in own))

    # --- confinement --------------------------------------------------------------------------------------------
    def confine_input(self, path: str | Path, *, field: str) -> Path:
        """Resolve a path that a user named for reading. Symbolic links and ``..`` are resolved before the check.

        Raises:
            ConfigError: It leaves ``input_roots``, ``output_roots`` and the workspace.
        """
        own = (self.raw, self.results, *self.output_roots)
        return _confine(path, (*self.input_roots, *own), field=field, setting="input_roots")

    def confine_output(self, path: str | Path, *, field: str) -> Path:
        """Resolve a path that a user named for writing; see :meth:`confine_input`."""
        return _confine(path, self.output_roots, field=field, setting="output_roots")

    def confine_incoming(self, path: str | Path, *, field: str) -> Path:
        """Resolve a folder for new input, such as studies of an archive, which must be below ``input_roots``."""
        return _confine(path, self.input_roots, field=field, setting="input_roots")

    # --- nnU-Net ------------------------------------------------------------------------------------------------
    def nnunet_environment(self, *, version: str | None = None, model: str | None = None) -> dict[str, str]:
        """Return nnU-Net's environment variables, fixed to one preprocessed version and one model if given."""
        environment = {
            "nnUNet_raw": self.raw,
            "nnUNet_preprocessed": str(self.preprocessed_root(version)) if version else self.preprocessed,
            "nnUNet_results": str(self.model_root(model)) if model else self.results,
        }
        if self.trainer_paths:
            environment["nnUNet_extTrainer"] = os.pathsep.join(self.trainer_paths)
        return environment


def _checked(version: str, field: str) -> str:
    if not _VERSION.fullmatch(version):
        raise ConfigError(field=field, value=version, problem="not a version name", fix="use one from an earlier step's result")
    return version


def _linked(link: Path) -> str | None:
    """Return the version name of a link ``.versions/<v>/DatasetXXX_Name``."""
    try:
        target = Path(os.readlink(link))
    except (FileNotFoundError, OSError):
        return None
    return target.parent.name if target.parent.parent.name == VERSIONS else None


def _confine(path: str | Path, roots: tuple[str, ...], *, field: str, setting: str) -> Path:
    if "\0" in str(path) or "\n" in str(path):
        raise ConfigError(field=field, value=str(path), problem="control characters are not allowed in paths")
    if not os.path.isabs(path):
        raise ConfigError(field=field, value=str(path), problem="must be an absolute path")
    resolved = Path(os.path.realpath(path))
    for root in roots:
        if resolved.is_relative_to(os.path.realpath(root)):
            return resolved
    allowed = ", ".join(roots) or "none"
    raise ConfigError(
        field=field, value=str(path), problem=f"outside the allowed folders ({allowed})", fix=f"extend {setting} in section [nnunet]"
    )
