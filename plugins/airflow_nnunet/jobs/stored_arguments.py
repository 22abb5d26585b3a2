"""Defines how Airflow stores a trigger."""

from __future__ import annotations

import inspect
from typing import Any


class StoredArguments:
    """Serializes a trigger that has an attribute for each of its arguments."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, which are all that a triggerer needs."""
        names = list(inspect.signature(type(self)).parameters)
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}
