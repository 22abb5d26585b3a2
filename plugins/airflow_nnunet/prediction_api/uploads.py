"""Lists a tenant's unfinished uploads and the disk space that they will still use.

Each upload holds a kernel lock on a file in its folder, so that uploads of a killed server do not count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from airflow_nnunet.prediction_api.tenants import Tenant
from nnunet_jobs.contract.http.problems import Problem
from nnunet_jobs.contract.http.uploads import MIB
from nnunet_jobs.contract.storage.files import try_lock

PARTIAL = ".partial-"
MARK = ".uploading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Describes one upload.

    Attributes:
        id: Id of the request.
        new: Whether there was no run of that id when it began.
        left: Number of bytes that it may still write.
    """

    id: str
    new: bool
    left: int


def begin(folder: Path, *, request_id: str, size: int, new: bool) -> int:
    """Mark an upload's folder. The mark is valid until the returned file descriptor is closed.

    Args:
        size: Number of bytes that the upload may write.
    """
    fd = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try_lock(fd)
    os.write(fd, json.dumps({"id": request_id, "size": size, "new": new}).encode())
    return fd


def in_progress(tenant: Tenant) -> list[Upload]:
    """Return the tenant's uploads. Hold the queue's lock, so that every folder has its mark."""
    found = []
    for folder in sorted(tenant.requests.glob(f"{PARTIAL}*")):
        try:
            fd = os.open(folder / MARK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # published or cancelled a moment ago
        try:
            if try_lock(fd):
                continue  # no process writes it any more
            data = json.loads(os.read(fd, 4096))
        finally:
            os.close(fd)
        found.append(Upload(id=data["id"], new=data["new"], left=max(0, data["size"] - _size(folder))))
    return found


def require_room(tenant: Tenant, size: int, uploads: Iterable[Upload]) -> None:
    """Refuse an upload that would fill the disk before its first byte is received.

    Args:
        size: Number of bytes that the upload may write.
        uploads: The unfinished uploads, which will use the space that they have declared.

    Raises:
        Problem: 507.
    """
    folder = tenant.requests
    while not folder.exists():
        folder = folder.parent
    left = shutil.disk_usage(folder).free - sum(upload.left for upload in uploads) - size
    if left < tenant.free_mib * MIB:
        raise Problem(507, "there is no disk space for the upload; ask the operator of this server")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue  # renamed or removed in the meantime
    return total
