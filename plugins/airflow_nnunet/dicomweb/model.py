"""Describes queries to an archive and their answers, without anything that identifies a patient."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Self

from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.files import content_hash

_UID = re.compile(r"[0-9][0-9.]{0,63}")
_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
# Objects that are derived from images, such as those that this package stores back, do not count as images.
DERIVED = ("SEG", "RTSTRUCT", "SR", "PR", "KO", "REG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Describes one study of an answer. Counts are None if the archive does not give them."""

    uid: str
    series: int | None = None
    instances: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Describes one series of a study."""

    uid: str
    modality: str
    instances: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFilter:
    """Selects series of a study.

    Attributes:
        modality: Modality, such as ``MR``; None selects every series of images, but no segmentations, structure sets
            and reports.
        description: Pattern with ``*`` and ``?`` for the series description; upper and lower case are the same.
    """

    modality: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        checked_modality(self.modality)
        checked_pattern("series_description", self.description)

    def matches(self, modality: str, description: str) -> bool:
        """Return whether a series with these values is selected."""
        fits = modality == self.modality if self.modality else modality not in DERIVED
        return fits and matches_pattern(description, self.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyQuery:
    """Selects studies of an archive.

    Attributes:
        date_from: First study date, included; no limit if None.
        date_to: Last study date, included; no limit if None.
        modality: Modality that the study must have.
        description: Pattern with ``*`` and ``?`` for the study description.
        series_description: Pattern that a series of the study must match.
    """

    date_from: date | None = None
    date_to: date | None = None
    modality: str | None = None
    description: str | None = None
    series_description: str | None = None

    def __post_init__(self) -> None:
        for name in ("date_from", "date_to"):
            object.__setattr__(self, name, _as_date(name, getattr(self, name)))
        if self.date_from and self.date_to and self.date_from > self.date_to:
            raise ConfigError(field="date_from", value=self.date_from, problem=f"is after date_to={self.date_to}", fix="swap them")
        checked_modality(self.modality)
        checked_pattern("description", self.description)
        checked_pattern("series_description", self.series_description)

    @property
    def series_filter(self) -> SeriesFilter:
        """Return the filter for the series whose instances are counted when a study is complete."""
        return SeriesFilter(modality=self.modality, description=self.series_description)

    @property
    def dates(self) -> str | None:
        """Return the dates as a DICOM range, such as ``20240101-20240131``."""
        if not (self.date_from or self.date_to):
            return None
        first, last = (f"{day:%Y%m%d}" if day else "" for day in (self.date_from, self.date_to))
        return first if first == last else f"{first}-{last}"

    def key(self, conn_id: str) -> str:
        """Return a short name of the query without its dates, which is the same for all runs of a sensor."""
        return content_hash([conn_id, self.modality, self.description, self.series_description])

    def matches(self, study_date: str, modalities: list[str], description: str) -> bool:
        """Check an answer, because some archives ignore filters that they do not know and return everything.

        Dates and modalities that the answer lacks are taken as matching; a missing description counts as empty.
        """
        if study_date and self.date_from and study_date < f"{self.date_from:%Y%m%d}":
            return False
        if study_date and self.date_to and study_date > f"{self.date_to:%Y%m%d}":
            return False
        if self.modality and modalities and self.modality not in modalities:
            return False
        return matches_pattern(description, self.description)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, the inverse of :meth:`from_json`."""
        return {name: value.isoformat() if isinstance(value, date) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(**data)


def checked_uid(uid: Any, *, field: str) -> str:
    """Return the UID after a check, because it becomes part of URLs.

    Raises:
        ConfigError: It has other characters than digits and dots.
    """
    text = str(uid).strip()
    if not _UID.fullmatch(text):
        raise ConfigError(field=field, value=text[:80], problem="must be a DICOM UID: digits and dots, at most 64")
    return text


def checked_modality(modality: str | None) -> None:
    """Refuse a modality that is not a DICOM code string."""
    if modality is not None and not _MODALITY.fullmatch(modality):
        raise ConfigError(field="modality", value=modality, problem="must be a DICOM modality such as MR or CT, in capitals")


def checked_pattern(field: str, pattern: str | None) -> None:
    """Refuse a pattern that QIDO does not accept as one value of DICOM type LO."""
    if pattern is not None and (not pattern.strip() or len(pattern) > 64 or not pattern.isprintable() or "\\" in pattern):
        raise ConfigError(
            field=field, value=pattern, problem="must be 1 to 64 printable characters without a backslash", fix="* and ? are wildcards"
        )


def matches_pattern(text: str, pattern: str | None) -> bool:
    """Return whether a string matches a DICOM pattern, ignoring case. ``[`` is an ordinary character in DICOM."""
    if pattern is None:
        return True
    return fnmatch.fnmatchcase(text.strip().casefold(), pattern.strip().casefold().replace("[", "[[]"))


def blank(value: Any) -> Any:
    """Return None for a value that a form or template left blank, else the value."""
    return None if value is None or (isinstance(value, str) and value.strip() in ("", "None")) else value


def _as_date(field: str, value: Any) -> date | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return datetime.fromisoformat(str(value)).date()
    except ValueError as error:
        raise ConfigError(field=field, value=value, problem="must be a date such as 2024-01-31") from error
