"""How long tests with random input go on: some fixed examples by default, FUZZ_SECONDS of new ones each in the nightly target."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from hypothesis import HealthCheck, settings

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))

quietly = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not (SECONDS or "FUZZ_EXAMPLES" in os.environ),
)
"""Settings of tests that ask a server: how long an answer takes is not their matter."""


def rounds() -> Iterator[int]:
    """0, and more numbers as long as FUZZ_SECONDS have not passed."""
    until = time.monotonic() + SECONDS
    number = 0
    while number == 0 or time.monotonic() < until:
        yield number
        number += 1
