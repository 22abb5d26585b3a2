"""Finds the failure class of any exception."""

from __future__ import annotations

import errno

from nnunet_jobs.contract.failure import FailureClass, JobError

# nnunetv2 and torch are not importable here, so their exceptions are known by name.
_BY_TYPE_NAME = {
    "OutOfMemoryError": FailureClass.GPU_OOM,
    "AcceleratorError": FailureClass.GPU_LOST,
    "MemoryError": FailureClass.HOST_OOM,
    "BrokenProcessPool": FailureClass.HOST_OOM,
    "NVMLError_GpuIsLost": FailureClass.GPU_LOST,
}
_DENIED_ERRNOS = {errno.EROFS, errno.EACCES, errno.EPERM}  # the same user would be refused again
_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def classify(error: BaseException) -> FailureClass:
    """Return the class of an exception: its own if it is a :class:`JobError`, else by errno, type name and well-known messages.

    The chain of causes is searched too, because libraries wrap ENOSPC and CUDA errors in their own errors.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, JobError):
            return seen.failure_class
        if isinstance(seen, OSError) and seen.errno in _DISK_ERRNOS:
            return FailureClass.DISK_FULL
        if isinstance(seen, OSError) and seen.errno in _DENIED_ERRNOS:
            return FailureClass.CONFIG
        if isinstance(seen, OSError) and seen.errno == errno.ENOMEM:
            return FailureClass.HOST_OOM
        if type(seen).__name__ in _BY_TYPE_NAME:
            return _BY_TYPE_NAME[type(seen).__name__]
        text = str(seen)
        if "CUDA out of memory" in text:
            return FailureClass.GPU_OOM
        if "No space left on device" in text or "iostream error" in text or "unexpected pos" in text:
            return FailureClass.DISK_FULL  # torch.save reports a full disk by the last two
        if "can't allocate memory" in text or "Cannot allocate memory" in text or "DefaultCPUAllocator" in text:
            return FailureClass.HOST_OOM
        if "CUDA error: device-side assert" not in text and ("GPU is lost" in text or "CUDA error: unknown error" in text):
            return FailureClass.GPU_LOST
        if isinstance(seen, KeyboardInterrupt):
            return FailureClass.INTERRUPTED
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return FailureClass.BUG
