"""Devices that are not to be used for a while: one file a device in the folder of the leases, with the reason."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from nnunet_jobs.contract.job.liveness import boot_id
from nnunet_jobs.contract.storage.files import read_json, write_record
from nnunet_jobs.devices.lease_entries import is_full

log = logging.getLogger("nnunet_jobs")


class Quarantine:
    """The quarantine of one host.

    Args:
        leases: Folder of the leases.
    """

    def __init__(self, leases: str | Path) -> None:
        self.folder = Path(leases) / "quarantine"
        self.folder.mkdir(parents=True, exist_ok=True)

    def devices(self) -> dict[str, str]:
        """Return the devices that must not be used now, with the reason."""
        found: dict[str, str] = {}
        for path in self.folder.glob("*.json"):
            try:
                data = read_json(path)
            except FileNotFoundError:  # removed by a reader of an earlier version, which removed expired entries
                continue
            # CLOCK_BOOTTIME does not jump with the wall clock, and a reboot resets a GPU.
            if data["boot_id"] == boot_id() and time.clock_gettime(time.CLOCK_BOOTTIME) < data["until"]:
                found[data["device"]] = data["reason"]
            # Expired entries stay, since removing one could remove a new one written meanwhile. There is one for each device.
        return found

    def add(self, device: str, reason: str, *, seconds: float = 3600.0) -> None:
        """Keep a device out of use for ``seconds`` or until the next boot."""
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        data = {"device": device, "reason": reason, "until": until, "boot_id": boot_id()}
        try:
            write_record(self.folder / f"{device}.json", data)
        except OSError as error:
            if not is_full(error):
                raise
            log.error("%s: no space left to note that %s is in quarantine (%s)", self.folder.parent, device, reason)
