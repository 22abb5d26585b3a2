"""Reads the GPUs of this host by NVML: memory, foreign processes, lost GPUs."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a GPU; ``memory_mib`` is None if the driver does not report it."""

    pid: int
    memory_mib: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU or MIG device as seen now. ``lost`` is NVML's reason if it no longer answers; ``parent`` is a MIG device's GPU."""

    uuid: str
    index: int
    name: str = ""
    total_mib: int = 0
    free_mib: int = 0
    processes: tuple[GpuProcess, ...] = ()
    lost: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All GPUs that this process may use, and the reason if there are none."""

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""


def read_inventory() -> Inventory:
    """Query NVML now. Never raises: without NVIDIA driver or nvidia-ml-py, the host has no GPUs, with the reason.

    CUDA_VISIBLE_DEVICES of this process limits the list, as it would limit torch.
    """
    try:
        import pynvml  # a small ctypes wrapper, imported only to look for GPUs
    except ImportError:
        return Inventory(reason="the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory(reason=f"NVML is not available ({error})")
    try:
        found: list[Gpu] = []
        count = pynvml.nvmlDeviceGetCount()
        for index in range(count):
            found += list(_devices(pynvml, index))
    except pynvml.NVMLError as error:
        return Inventory(reason=f"NVML does not answer ({error})")
    finally:
        pynvml.nvmlShutdown()
    visible = _visible(found)
    if found and not visible:
        return Inventory(reason=f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides all {len(found)} GPUs")
    if not found and count:
        return Inventory(reason=f"NVML finds {count} GPU(s) in MIG mode without MIG devices; make some with nvidia-smi mig -cgi ... -C")
    return Inventory(gpus=tuple(visible), reason="" if visible else "NVML finds no GPU")


def torch_is_cpu_only() -> bool:
    """Whether the version of the installed torch (such as ``2.8.0+cpu``) shows that it cannot use a GPU."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def _devices(pynvml: Any, index: int) -> Iterator[Gpu]:
    """Yield the GPU of this index, or its MIG devices if it is in MIG mode, since CUDA cannot use the GPU itself then."""
    uuid = f"index-{index}"
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        slices = _slices(pynvml, handle)
        if slices is None:
            yield _gpu(pynvml, handle, index)
        for part in slices or ():
            yield _gpu(pynvml, part, index, parent=uuid)
    except pynvml.NVMLError as error:
        # 15 is "GPU is lost"; also 999 "unknown" and 10 "power cable" mean that nothing should be started there
        yield Gpu(uuid=uuid, index=index, lost=str(error))


def _gpu(pynvml: Any, handle: Any, index: int, *, parent: str | None = None) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    newer = _optional(pynvml, lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2), None)
    reserved = newer.reserved if newer is not None else 0  # by driver and firmware; no process can use it
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        index=index,
        name=_optional(pynvml, lambda: _text(pynvml.nvmlDeviceGetName(handle)), ""),
        total_mib=(memory.total - reserved) // _MIB,
        free_mib=memory.free // _MIB,
        processes=tuple(
            GpuProcess(pid=item.pid, memory_mib=None if item.usedGpuMemory is None else item.usedGpuMemory // _MIB)
            for item in _optional(pynvml, lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), [])
        ),
        parent=parent,
    )


def _slices(pynvml: Any, handle: Any) -> list[Any] | None:
    """Return the MIG devices of a GPU that this container may see; None if it is not in MIG mode or too old for it."""

    def enabled() -> bool:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)

    if not _optional(pynvml, enabled, False):
        return None
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        part = _optional(pynvml, lambda number=number: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number), None)
        if part is not None:
            found.append(part)
    return found


def _optional(pynvml: Any, ask: Any, otherwise: Any) -> Any:
    """Return the answer to a query that old drivers and small GPUs do not support; a lost GPU is never taken for one of these."""
    try:
        return ask()
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NotFound,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_ArgumentVersionMismatch,
    ):
        return otherwise


def _visible(found: list[Gpu]) -> list[Gpu]:
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return found
    wanted = [part.strip() for part in setting.split(",") if part.strip()]
    return [gpu for gpu in found if any(gpu.uuid.startswith(part) if not part.isdigit() else gpu.index == int(part) for part in wanted)]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
