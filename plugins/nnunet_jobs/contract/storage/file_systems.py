"""Finds network file systems on Linux, where kernel locks differ from those on a local disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nnunet_jobs.contract.failure import ConfigError

# f_type values from linux/magic.h and the file systems' own sources.
_NETWORK_FILE_SYSTEMS = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x00C36400: "ceph",
    0x19830326: "beegfs",
    0x5346414F: "afs",
    0x6B414653: "kafs",
    0x73757245: "coda",
    0x01021997: "9p",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0x20030528: "orangefs",
    0xAAD7AAEA: "panfs",
    0x786F4256: "vboxsf",
}
_FUSE = 0x65735546
_LOCAL_FUSE = {"fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs"}


def network_file_system(path: Path) -> str | None:
    """Return the name of the network file system that ``path`` is on; None for a local one.

    FUSE file systems count as network ones unless known to be local, because most of them are.
    """
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type comes first
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    kind = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    if kind == _FUSE:
        mounted = _mount_type(path)
        return None if mounted in _LOCAL_FUSE else mounted
    return _NETWORK_FILE_SYSTEMS.get(kind)


def _mount_type(path: Path) -> str:
    """Return the type of the mount that holds ``path``, from /proc/self/mountinfo (the last line of a mount point counts)."""
    real = Path(os.path.realpath(path))
    best, found = -1, "fuse"
    for line in _mounts():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if real.is_relative_to(point) and len(point) >= best:
            best, found = len(point), after.split()[0]
    return found


def _mounts() -> list[str]:
    try:
        return Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []


def require_local(path: Path, *, field: str) -> None:
    """Refuse a folder on a network file system, where kernel locks do not follow processes.

    Raises:
        ConfigError: It is on a network file system; the message has its name.
    """
    kind = network_file_system(path)
    if kind is not None:
        raise ConfigError(
            field=field,
            value=str(path),
            problem=(
                f"is on a network file system ({kind}), where kernel locks are not passed on to child processes, "
                "so that a GPU could be leased twice"
            ),
            fix=f"set {field} in section [nnunet] to a folder on a local disk of each host",
        )
