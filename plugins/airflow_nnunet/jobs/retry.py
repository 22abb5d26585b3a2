"""Decides which failures are retried and when. This is the default retry policy of all nnU-Net operators."""

from __future__ import annotations

import random
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import jinja2
from airflow.sdk import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import XComNotFound

from nnunet_jobs.contract.classify import classify
from nnunet_jobs.contract.failure import FailureClass, JobError

if TYPE_CHECKING:
    from airflow.sdk import Context

DEFAULT_RETRIES = 3
# Airflow's default of five minutes is long for a task that only has to attach to its job again.
DEFAULT_RETRY_DELAY = timedelta(seconds=15)
# Errors that an expression in a template can raise. If the API server does not answer while an XCom is fetched, other
# errors are raised, and those are retried.
TEMPLATE_FAULTS = (jinja2.TemplateError, XComNotFound, TypeError, AttributeError, LookupError, ValueError, ArithmeticError)


class NnunetRetryPolicy(RetryPolicy):
    """Fails at once on ``data``, ``config`` and a user's cancel, and retries others with exponential backoff and
    jitter.

    The delay before try ``n + 1`` is drawn evenly from ``[b / 2, b]`` with ``b = min(base * 2 ** (n - 1), cap)``, so
    that fifty tasks that failed together do not retry together.

    Args:
        base: Seconds before the second try.
        cap: Longest delay in seconds.
        gpu_oom_tries: Number of tries when CUDA runs out of memory. The second one may get another GPU or less to do; a
            third one would do the same again.
    """

    def __init__(self, *, base: float = 15.0, cap: float = 900.0, gpu_oom_tries: int = 2) -> None:
        if not 0 < base <= cap:
            raise ValueError(f"base={base}, cap={cap}: need 0 < base <= cap, in seconds")
        if gpu_oom_tries < 1:
            raise ValueError(f"gpu_oom_tries={gpu_oom_tries}: must be 1 or more")
        self.base = base
        self.cap = cap
        self.gpu_oom_tries = gpu_oom_tries

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None) -> RetryDecision:
        """Decide by failure class; runs in the task process."""
        failure_class = failure_class_of(exception)
        if getattr(exception, "cancelled", False):
            return RetryDecision.fail("a user cancelled the job")
        if not failure_class.retryable:
            return RetryDecision.fail(f"{failure_class}: the same input fails the same way")
        # After a clear the try number continues and max_tries is raised, so tries are counted back from the end.
        tries_so_far = self._tries_so_far(try_number, max_tries, context)
        if failure_class is FailureClass.GPU_OOM and tries_so_far >= self.gpu_oom_tries:
            return RetryDecision.fail(f"gpu_oom: {tries_so_far} tries did not fit the GPU; use a smaller plan or reserve more memory")
        delay = self.delay(tries_so_far)
        return RetryDecision.retry(delay=delay, reason=f"{failure_class}: next try in {delay.total_seconds():.0f} s")

    def delay(self, tries_so_far: int) -> timedelta:
        """Return the seconds to wait after that many tries, drawn at random."""
        # The exponent is limited, because 2 ** 10_000 does not fit a float.
        longest = min(self.base * 2.0 ** min(max(tries_so_far - 1, 0), 62), self.cap)
        return timedelta(seconds=random.uniform(longest / 2, longest))  # noqa: S311  (jitter, not a secret)

    @staticmethod
    def _tries_so_far(try_number: int, max_tries: int, context: Context | None) -> int:
        task = (context or {}).get("task")
        retries = getattr(task, "retries", None)
        return max(1, try_number - (max_tries - retries)) if isinstance(retries, int) else max(1, try_number)

    def serialize(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`deserialize`."""
        return {"base": self.base, "cap": self.cap, "gpu_oom_tries": self.gpu_oom_tries}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> NnunetRetryPolicy:
        """Build from what :meth:`serialize` wrote."""
        return cls(**{name: data[name] for name in ("base", "cap", "gpu_oom_tries") if name in data})


def failure_class_of(exception: BaseException) -> FailureClass:
    """Return the failure class of any exception that can end a task."""
    own = getattr(exception, "failure_class", None)
    if isinstance(own, FailureClass):
        return own
    if isinstance(exception, JobError):
        return exception.failure_class
    return FailureClass.CONFIG if of_the_dag(exception) else classify(exception)


def of_the_dag(exception: BaseException) -> bool:
    """Return whether the error is in the DAG: in a template, or in a list that a task is mapped over.

    Airflow expands a mapped task before there is an operator that could report the error, so the traceback is examined.
    """
    if not isinstance(exception, TEMPLATE_FAULTS):
        return False
    return any(
        frame.f_code.co_name == "render_template_fields" and str(frame.f_globals.get("__name__", "")).startswith("airflow.")
        for frame, _ in traceback.walk_tb(exception.__traceback__)
    )
