"""``python -m nnunet_jobs gate``: would this challenger be promoted? One JSON object a line in, one out."""

from __future__ import annotations

import argparse
import json
import sys

from nnunet_jobs.cli.command import Command
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Reads from stdin. A line has policy, at, history (the record of each earlier answer) and cases (case, group, since, champion, "
        "challenger: Dice by label). A line that cannot be judged is answered with an object that has the field error."
    )


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.selection.gate.decision import decide_json

    code = Exit.DONE
    for line in sys.stdin.buffer:  # decoded line by line: one line that is no text does not end the others
        if not line.strip():
            continue
        try:
            answer = decide_json(_parsed(line))
        except ConfigError as error:
            parts = {name: getattr(error, name) for name in ("field", "problem", "fix")}
            answer = {"error": str(error), **parts}
            code = Exit.REFUSED
        print(json.dumps(answer, allow_nan=False), flush=True)
    return code


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            field="request", value=line[:80].decode(errors="replace"), problem=f"is not JSON ({error})", fix="write one object a line"
        ) from error


GATE = Command(name="gate", help="say whether a challenger would be promoted, one JSON object a line", declare=_declare, run=_run)
