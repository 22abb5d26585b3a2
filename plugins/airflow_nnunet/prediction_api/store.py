"""A request's folder: ``request.json``, ``images`` and later ``output``. It has its name only when all of it is on the disk.

requests/.partial-<hex>/   while it comes in; no run knows it
requests/p-<hex>/          from then on; the id is the run's, the case's and the folder's name
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
    """Id of a request: the same one for the same team, user and idempotency key, a random one without a key."""
    if key is None:
        return f"{ID_PREFIX}{secrets.token_hex(16)}"
    return f"{ID_PREFIX}{hashlib.sha256(json.dumps([tenant.team, user, key]).encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """A request that is on the disk. ``images``: file names in the order of the channels. ``content``: hash of all that was asked."""

    folder: Path
    dataset: str
    model: str | None
    images: tuple[str, ...]
    content: str

    @property
    def id(self) -> str:
        """The request's id."""
        return self.folder.name

    @property
    def image_paths(self) -> list[Path]:
        """One file a channel."""
        return [self.folder / "images" / name for name in self.images]

    @property
    def output(self) -> Path:
        """Folder of the segmentation and its record."""
        return self.folder / "output"


def open_request(workspace: Workspace, request_id: str) -> StoredRequest:
    """The request of a run.

    Raises:
        ConfigError: There is none of that id.
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
    """Folders of requests, those that are still coming in included, and how many days ago each was made."""
    root = requests_folder(workspace)
    for name in sorted(os.listdir(root)) if root.is_dir() else ():
        if REQUEST_ID.fullmatch(name) or name.startswith(uploads.PARTIAL):
            with contextlib.suppress(FileNotFoundError):  # published or removed meanwhile
                yield root / name, (time.time() - (root / name).stat().st_mtime) / 86400


def remove(folder: Path) -> None:
    """Remove a request's folder in such an order that it never looks whole when only a part of it is left."""
    (folder / "request.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


class Draft:
    """A request that comes in, under a name that no run knows. Use it as a context manager: what is not published is removed.

    Args:
        size: Bytes that it may write.
        new: No run of that id is known.
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
            require_mounted(self._workspace)  # what lies in an empty mount point is hidden when its share is mounted
        except NotMounted as error:
            raise OSError(errno.ENODEV, str(error)) from error
        make_folder(self._workspace, self.folder / "images")  # the process's umask is every thread's: modes are set one by one
        self._mark = uploads.begin(self.folder, request_id=self._target.name, size=self._size, new=self._new)
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        if self._mark is not None:
            os.close(self._mark)

    def image(self, channel: int, file_ending: str) -> Path:
        """Where the image of a channel goes; named by us, as a client's name may say who the patient is."""
        self._images.append(self.folder / "images" / f"{self._target.name}_{channel:04d}{file_ending}")
        return self._images[-1]

    def complete(self, *, dataset: str, model: str | None) -> str:
        """Write the request's description, and have everything on the disk. Returns the hash of what is asked."""
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
        """Give the folder its name; it survives a power cut from here on.

        Raises:
            OSError: The name is taken.
        """
        (self.folder / uploads.MARK).unlink(missing_ok=True)
        os.rename(self.folder, self._target)
        sync_directory(self._target.parent)
