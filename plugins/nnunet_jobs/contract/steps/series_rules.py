"""Parses the rules of the field ``series``, which say which DICOM series is which channel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

IMAGE_MODALITIES = ("CT", "MR", "PT")
"""Modalities that need not be named. Others (ultrasound, nuclear medicine, ...) need a rule that names them."""
_KEYS = ("modality", "description", "protocol", "tags", "each")
_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]{1,63}")
Value = str | float


class SeriesLike(Protocol):
    """The attributes of a series that rules use; :class:`nnunet_jobs.dicom.model.Series` has them."""

    @property
    def modality(self) -> str:
        """Return the modality, such as ``MR``."""

    @property
    def description(self) -> str:
        """SeriesDescription."""

    @property
    def protocol(self) -> str:
        """ProtocolName."""

    @property
    def tags(self) -> Mapping[str, Any]:
        """Return values by keyword: a string, or a tuple of strings if the instances differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesRule:
    """Parsed rule of one channel. A series matches when it fulfils all conditions of the rule.

    Attributes:
        modality: Allowed modalities.
        description: Regular expression searched anywhere in the series description; None allows any.
        protocol: Regular expression searched anywhere in the protocol name; None allows any.
        tags: Maps a DICOM keyword to a regular expression, a number, or a list of them of which one must fit. Several
            values of a tag are one string with backslashes, such as ``ORIGINAL\\PRIMARY``; if instances differ, each
            must fit.
        each: Every matching series becomes a separate case, instead of one case for each study.
    """

    modality: tuple[str, ...] = IMAGE_MODALITIES
    description: str | None = None
    protocol: str | None = None
    tags: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    each: bool = False

    @classmethod
    def parse(cls, rule: Any) -> SeriesRule:
        """Read one channel's rule.

        Raises:
            ValueError: It is malformed; the message names the key and the fix.
        """
        if not isinstance(rule, Mapping):
            raise ValueError(f'{rule!r} must be a mapping such as {{"modality": "MR", "description": "t1.*gd"}}')
        unknown = sorted(set(map(str, rule)) - set(_KEYS))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
        modality = rule.get("modality", IMAGE_MODALITIES)
        names = [modality] if isinstance(modality, str) else modality
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f'modality={modality!r} must be a name such as "MR", or a list of them')
        tags = rule.get("tags", {})
        if not isinstance(tags, Mapping):
            raise ValueError(f'tags={tags!r} must map DICOM keywords to values, such as {{"ImageType": "ORIGINAL"}}')
        each = rule.get("each", False)
        if not isinstance(each, bool):
            raise ValueError(f"each={each!r} must be true or false")
        return cls(
            modality=tuple(name.upper() for name in names),
            description=_pattern("description", rule.get("description")),
            protocol=_pattern("protocol", rule.get("protocol")),
            tags={_keyword(keyword): _values(keyword, value) for keyword, value in tags.items()},
            each=each,
        )

    def matches(self, series: SeriesLike) -> bool:
        """Whether a series matches the rule. Localizers do not match, unless the rule has ImageType."""
        if series.modality.upper() not in self.modality:
            return False
        for pattern, text in ((self.description, series.description), (self.protocol, series.protocol)):
            if pattern is not None and not re.search(pattern, text):
                return False
        if "ImageType" not in self.tags and all("LOCALIZER" in text.upper() for text in _texts(series.tags.get("ImageType", ""))):
            return False
        return all(all(_fits(text, wanted) for text in _texts(series.tags.get(keyword, ""))) for keyword, wanted in self.tags.items())


def parse_rules(rules: Mapping[str, Any]) -> dict[str, SeriesRule]:
    """Read the field ``series``, which maps channel names to rules, in order.

    Raises:
        ValueError: A rule is malformed.
    """
    parsed = {}
    for channel, rule in rules.items():
        try:
            parsed[str(channel)] = SeriesRule.parse(rule)
        except ValueError as error:
            raise ValueError(f"{channel}: {error}") from None
    if len(parsed) > 1 and any(rule.each for rule in parsed.values()):
        raise ValueError("each: makes a case of every series, so it needs a dataset of one channel")
    return parsed


def channel_rules(
    series: Mapping[str, Any] | None, channel_names: Mapping[str, str] | None
) -> tuple[dict[str, str], dict[str, SeriesRule]]:
    """Map channel numbers to names, and names to rules in the order of the numbers, from the two fields together.

    Raises:
        ValueError: The fields do not fit together, or a rule is malformed.
    """
    rules = parse_rules(series or {})
    if channel_names is None:
        if len(rules) != 1:
            raise ValueError(f'channel_names must say the order of the channels {list(rules)}, such as {{"0": "T1", "1": "T2"}}')
        channel_names = {"0": next(iter(rules))}
    names = {str(number): str(name) for number, name in channel_names.items()}
    if set(names) != {str(number) for number in range(len(names))} or len(set(names.values())) != len(names):
        raise ValueError(f"channel_names {names} must number different names 0, 1, ...")
    if not rules and len(names) == 1:
        rules = {names["0"]: SeriesRule()}
    if set(rules) != set(names.values()):
        raise ValueError(f"series has rules for {sorted(rules)}, channel_names has {sorted(names.values())}; give each channel a rule")
    ordered = {str(number): names[str(number)] for number in range(len(names))}
    return ordered, {name: rules[name] for name in ordered.values()}


def _pattern(key: str, text: Any) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{key}={text!r} must be a regular expression")
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{key}={text!r} is not a regular expression ({error}); escape special characters") from None
    return text


def _keyword(keyword: Any) -> str:
    if not isinstance(keyword, str) or not _KEYWORD.fullmatch(keyword):
        raise ValueError(f"tags: {keyword!r} is not a DICOM keyword, such as 'EchoTime'")
    return keyword


def _values(keyword: str, value: Any) -> tuple[Value, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ValueError(f"tags: {keyword}={item!r} must be a regular expression or a number")
        if isinstance(item, str):
            _pattern(f"tags: {keyword}", item)
    if not values:
        raise ValueError(f"tags: {keyword} has no value")
    return tuple(values)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


def _fits(text: str, wanted: Sequence[Value]) -> bool:
    for value in wanted:
        if isinstance(value, str):
            if re.search(value, text):
                return True
        else:
            try:
                if math.isclose(float(text), value, rel_tol=1e-6, abs_tol=1e-9):
                    return True
            except ValueError:
                continue
    return False
