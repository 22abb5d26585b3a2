"""What the parameters of every step share: JSON in and out, and checks that name the field, its value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.fields import field_types, fits, type_in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParams:
    """Base: JSON in and out, types and unknown fields checked with the fix named."""

    step: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for item in fields(self):
            value = getattr(self, item.name)
            if not fits(value, hints[item.name]):
                raise ConfigError(where=f"{self.step}:", field=item.name, value=value, problem=f"must be {type_in_words(hints[item.name])}")
        self._check()

    def _check(self) -> None:
        """Raise ConfigError where a value is out of range. Overridden by each step."""

    def require(self, holds: bool, name: str, fix: str) -> None:
        """Raise a ConfigError that names the field, its value and the fix unless ``holds``."""
        if not holds:
            raise ConfigError(where=f"{self.step}:", field=name, value=getattr(self, name), problem=fix)

    def to_json(self) -> dict[str, Any]:
        """JSON object, inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build from JSON.

        Raises:
            ConfigError: Unknown or missing field, wrong type, value out of range.
        """
        known = [item.name for item in fields(cls)]
        for name in data:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"{cls.step}: unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")
                )
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"{cls.step}: {error}") from error
