"""Chooses the devices for a request by best fit of memory, without files or locks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that can be leased. ``free_mib`` is what foreign processes leave; ``whole`` is False while they compute on it."""

    uuid: str
    total_mib: int
    free_mib: int
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for ``count`` devices of ``kind`` with ``memory_mib`` on each, or whole ones if None. Teams take turns."""

    kind: str
    count: int = 1
    memory_mib: int | None = None
    exclude: tuple[str, ...] = ()
    owner: str = ""
    team: str = ""

    def could_use(self, device: Device) -> bool:
        """Whether the device could ever serve this request, so that the request is delayed if another one takes it."""
        return device.uuid not in self.exclude and (self.memory_mib or 0) <= device.total_mib


class Allocator:
    """Holds devices and what is reserved of them, to compute an allocation."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self.devices = {device.uuid: device for device in devices}
        self._reserved: dict[str, list[int | None]] = {}

    def reserve(self, uuids: Iterable[str], memory_mib: int | None) -> None:
        """Reserve so much memory of these devices; all of each if None."""
        for uuid in uuids:
            self._reserved.setdefault(uuid, []).append(memory_mib)

    def allocate(self, request: Request) -> list[str] | None:
        """Choose the devices with the least free memory afterwards; for whole devices the smallest. None if none fit."""
        fits = []
        for device in self.devices.values():
            if device.uuid not in request.exclude:
                left = self._left(device, request.memory_mib)
                if left is not None:
                    fits.append((left, device.total_mib, device.uuid))
        if len(fits) < request.count:
            return None
        return [uuid for _, _, uuid in sorted(fits)[: request.count]]

    def named(self, uuids: Sequence[str]) -> list[Device]:
        """Return the devices of these names."""
        return [self.devices[uuid] for uuid in uuids]

    def _left(self, device: Device, memory_mib: int | None) -> int | None:
        """Return the memory that stays free on a device after such a request; None when it does not fit."""
        taken = self._reserved.get(device.uuid, [])
        if memory_mib is None:
            return 0 if device.whole and not taken else None
        if None in taken:
            return None
        left = device.free_mib - sum(amount or 0 for amount in taken) - memory_mib
        return left if left >= 0 else None
