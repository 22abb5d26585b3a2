"""Finds labels whose Dice is undefined because no reference segmentation has them, and names them in the card and the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger("nnunet_jobs")


def undefined(cross_validated: Mapping[str, float | None], held_out: Mapping[str, float | None]) -> dict[str, list[str]]:
    """Return labels without Dice, because no reference has them, and log them; the means are over the others."""
    found = {}
    for what, per_label in (("validation", cross_validated), ("hold-out", held_out)):
        found[what] = [name for name, dice in per_label.items() if dice is None]
        if found[what]:
            log.warning("no %s case has %s: its Dice is undefined, and the mean is over the other labels", what, ", ".join(found[what]))
    return found
