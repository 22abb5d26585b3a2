"""Reads what this host or container allows: cores, memory, out-of-memory kills. For Linux, cgroup v1 and v2."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_MIB = 1 << 20


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cgroup_folders(controller: str, root: Path, own: Path) -> list[Path]:
    """Return folders of our cgroup and its ancestors for one controller (v1) or for all (v2), innermost first.

    Inside a container the path of /proc/self/cgroup may not exist below the mount; then the mount itself is our cgroup.
    """
    folders: list[Path] = []
    for line in (_read(own) or "").splitlines():
        _, controllers, relative = line.split(":", 2)
        if controllers == "":
            base = root if (root / "cgroup.controllers").exists() else root / "unified"
        elif controller in controllers.split(","):
            base = root / controller if (root / controller).is_dir() else root / controllers
        else:
            continue
        folder = base / relative.lstrip("/")
        while True:
            if folder.is_dir():
                folders.append(folder)
            if folder == base:
                break
            folder = folder.parent
    return folders


def cores(*, root: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """Return the cores that we may use, such as 1.5: the least of affinity and the quotas of all cgroups above (v1 and v2)."""
    limit = float(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders("cpu", root, own):
        quota, period = 0.0, 0.0
        text = _read(folder / "cpu.max")
        if text is not None:
            first, _, second = text.partition(" ")
            if first != "max":
                quota, period = float(first), float(second or 100_000)
        else:
            quota = float(_read(folder / "cpu.cfs_quota_us") or -1)
            period = float(_read(folder / "cpu.cfs_period_us") or 0)
        if quota > 0 and period > 0:
            limit = min(limit, quota / period)
    return limit


def memory_mib(*, root: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the memory that we may use, in MiB: the least of the host's memory and the limits of all cgroups above."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _cgroup_folders("memory", root, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text and text != "max":
                limit = min(limit, int(text))
    return limit // _MIB


def oom_kills(*, root: Path = CGROUPS, own: Path = OWN_CGROUP) -> tuple[int | None, int]:
    """Return (kills by our own cgroup's limit, None if the kernel does not count them; kills on the whole host), since boot."""
    ours: int | None = None
    for folder in _cgroup_folders("memory", root, own)[:1]:  # the kernel counts a kill in the killed process's cgroup, for any limit
        for name in ("memory.events", "memory.oom_control"):
            count = _count(_read(folder / name), "oom_kill")
            ours = count if ours is None else ours
    return ours, _count(_read(Path("/proc/vmstat")), "oom_kill") or 0


def _count(text: str | None, key: str) -> int | None:
    """Return the value of a ``key value`` line."""
    for line in (text or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return None


def shared_memory_mib() -> tuple[int, int]:
    """Return (total, free) MiB of /dev/shm, which data workers use for arrays; (0, 0) if there is none."""
    try:
        found = os.statvfs("/dev/shm")  # noqa: S108 - the kernel's fixed place, not a temporary file of ours
    except OSError:
        return 0, 0
    return found.f_blocks * found.f_frsize // _MIB, found.f_bavail * found.f_frsize // _MIB
