"""Stores a request in a folder with ``request.json``, ``images`` and later ``output``. It is renamed when it is
complete.

requests/.partial-<hex>/   while the request is received; it has no run yet
requests/p-<hex>/          afterwards; run, case and folder have the same id
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airflow_nnunet.prediction_api import ID_PREFIX, uploads
from airflow_nnunet.prediction_api.tenants import Tenant, requests_folder
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import content_hash, read_json, sha256_file, sync_directory, sync_file, write_json
from nnunet_jobs.contract.storage.marker import NotMounted, require_mounted
from nnunet_jobs.contract.storage.permissions import file_mode, make_folder
from nnunet_jobs.contract.storage.workspace import Workspace

REQUEST_ID = re.compile(rf"{ID_PREFIX}[0-9a-f]{{32}}")


def new_id(tenant: Tenant, user: str, key: str | None) -> str:
    """Return the id of a request, which is random without a key, and the same for the same team, user and key."""
    if key is None:
        return f"{ID_PREFIX}{secrets.token_hex(16)}"
    return f"{ID_PREFIX}{hashlib.sha256(json.dumps([tenant.team, user, key]).encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """Describes a stored request, with file names in the order of the channels, and a hash of the whole request."""

    folder: Path
    dataset: str
    model: str | None
    images: tuple[str, ...]
    content: str

    @property
    def id(self) -> str:
        """Return the request's id."""
        return self.folder.name

    @property
    def image_paths(self) -> list[Path]:
        """Return the paths of the images, one for each channel."""
        return [self.folder / "images" / name for name in self.images]

    @property
    def output(self) -> Path:
        """Return the folder of the segmentation and its record."""
        return self.folder / "output"


def open_request(workspace: Workspace, request_id: str) -> StoredRequest:
    """Read the request of a run.

    Raises:
        ConfigError: There is no request of that id.
    """
    folder = requests_folder(workspace) / request_id
    try:
        if not REQUEST_ID.fullmatch(request_id):
            raise FileNotFoundError
        data = read_json(folder / "request.json")
    except FileNotFoundError as error:
        raise ConfigError(
            field="run_id",
            value=request_id,
            problem=f"no request of that id is in {folder.parent}",
            fix="runs of this DAG begin with POST /nnunet-api/predictions",
        ) from error
    return StoredRequest(folder=folder, dataset=data["dataset"], model=data["model"], images=tuple(data["images"]), content=data["content"])


def stored_ids(workspace: Workspace) -> Iterator[tuple[Path, float]]:
    """Yield folders of requests, also of unfinished uploads, and how many days ago each was made."""
    root = requests_folder(workspace)
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        if REQUEST_ID.fullmatch(name) or name.startswith(uploads.PARTIAL):
            with contextlib.suppress(FileNotFoundError):  # published or removed in the meantime
                yield root / name, (time.time() - (root / name).stat().st_mtime) / 86400


def remove(folder: Path) -> None:
    """Remove a request's folder. ``request.json`` goes first, so that a partly removed folder never looks complete."""
    (folder / "request.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


class Draft:
    """Receives a request under a temporary name. As a context manager it removes what was not published.

    Args:
        size: Number of bytes that the upload may write.
        new: Whether there is no run of that id yet.
    """

    def __init__(self, tenant: Tenant, request_id: str, *, size: int = 0, new: bool = True) -> None:
        self._size, self._new = size, new
        self._mark: int | None = None
        self._workspace = tenant.workspace
        self._target = tenant.requests / request_id
        self.folder = tenant.requests / f"{uploads.PARTIAL}{secrets.token_hex(8)}"
        self._images: list[Path] = []

    def __enter__(self) -> Draft:
        try:
            require_mounted(self._workspace)  # files in an empty mount point are hidden when its share is mounted
        except NotMounted as error:
            raise OSError(errno.ENODEV, str(error)) from error
        make_folder(self._workspace, self.folder / "images")  # modes are set here, as threads share the umask
        self._mark = uploads.begin(self.folder, request_id=self._target.name, size=self._size, new=self._new)
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        if self._mark is not None:
            os.close(self._mark)

    def image(self, channel: int, file_ending: str) -> Path:
        """Return the path for a channel's image. We choose its name, because the client's name may identify the patient."""
        self._images.append(self.folder / "images" / f"{self._target.name}_{channel:04d}{file_ending}")
        return self._images[-1]

    def complete(self, *, dataset: str, model: str | None) -> str:
        """Write the request's description, sync everything to the disk, and return the hash of the request."""
        asked = {"dataset": dataset, "model": model, "sha256": [sha256_file(path) for path in self._images]}
        self.content = content_hash(asked, length=32)
        for path in self._images:
            path.chmod(file_mode(self._workspace))
            sync_file(path)
        sync_directory(self.folder / "images")
        request = {"schema": 1, **asked, "images": [path.name for path in self._images], "content": self.content}
        write_json(self.folder / "request.json", request)
        (self.folder / "request.json").chmod(file_mode(self._workspace))
        return self.content

    def publish(self) -> None:
        """Give the folder its final name. From then on the request survives a power cut.

        Raises:
            OSError: There is a folder of that name already.
        """
        (self.folder / uploads.MARK).unlink(missing_ok=True)
        os.rename(self.folder, self._target)
        sync_directory(self._target.parent)
