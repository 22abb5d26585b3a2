"""Rewrites the errors of libraries that read images for users, without names of classes, functions and objects."""

from __future__ import annotations

import re

_SAID = 300  # characters that are shown
_UNFORESEEN = (AttributeError, TypeError, ZeroDivisionError, LookupError, AssertionError, OverflowError, RecursionError, UnicodeError)
_NO_FIT = "its parts do not fit together"
_OBJECTS = re.compile(r"\s*<[\w.]+(?: [^<>]*)?>")  # <_io.BytesIO object at 0x7f1c>, <tifffile.TiffTag 256 @10>
_RAISED = re.compile(r"raised \w*Error\((['\"])(.*)\1\)")
_BYTES = re.compile(r"(?:: \w+)?=?b(['\"]).*?\1")
_WHO = re.compile(r"^(?:\[\w+\] \w+: |sitk::ERROR: |ITK ERROR: |Error -?\d+ while decompressing data: )")
_NUMBER = re.compile(r"(?:invalid literal for int\(\) with base \d+|could not convert string to float): (.*)")
_INTERNAL = re.compile(
    r"\w+\(\)|object has no attribute|not supported between|modulo by zero|division by zero|\b_\w+|[A-Z]{3,}_[A-Z_]+|NoneType"
)


def library_says(error: BaseException | str) -> str:
    """Say why a library could not read a file. Text about the library's internals is replaced, since it does not help the user.

    Args:
        error: Error that it raised, or a line that it logged.
    """
    if isinstance(error, _UNFORESEEN):
        return _NO_FIT
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = _WHO.sub("", lines[-1]) if lines else ""  # ITK's errors are many lines with paths; the last says what is wrong
    text = _RAISED.sub(lambda match: match[2], text)
    text = _OBJECTS.sub("", _BYTES.sub("", text))
    text = " ".join(text.split())[:_SAID].strip(" .!")
    if number := _NUMBER.search(text):
        text = f"{number[1]} is not a number"
    if not text or _INTERNAL.search(text):
        return _NO_FIT
    return text if text.isprintable() else ascii(text)
