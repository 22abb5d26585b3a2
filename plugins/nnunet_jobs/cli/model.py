"""``python -m nnunet_jobs model``: shows a dataset's models, and changes which one is the champion."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_jobs.cli.command import Command, read_workspace
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.promotion import PromotionPolicy
from nnunet_jobs.contract.storage.permissions import apply_permissions
from nnunet_jobs.contract.storage.workspace import Workspace

_NEEDS_MODEL = ("compare", "promote", "retire")
_TAKES_NONE = ("list", "release", "replay")
_ACTIONS = ("list", "show", "compare", "replay", "promote", "rollback", "retire", "pin", "release")


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=_ACTIONS, metavar="ACTION", help=", ".join(_ACTIONS))
    parser.add_argument("dataset", help="id or full name")
    parser.add_argument("model", nargs="?", help="model id; for show and pin, the champion by default; for rollback, the champion before")
    parser.add_argument("other", nargs="?", help="for compare, the model to compare with")
    parser.add_argument("--workspace-json", required=True, help="file with the workspace as JSON; '-' reads it from stdin")
    parser.add_argument("--user", help="the person who does it, if that is not this process's user")
    parser.add_argument("--why", help="the reason for the ledger, in one sentence; never patient data")
    parser.add_argument("--request", metavar="ID", help="name of the request: a change that was made for it already is not made again")
    parser.add_argument("--policy", metavar="FILE", help="for replay, YAML or JSON with the policy's fields, such as promote and min_gain")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_jobs.registry import overview

    action, model = arguments.action, arguments.model
    if action in _NEEDS_MODEL and model is None:
        raise ConfigError(field="model", value=None, problem=f"{action} needs a model", fix="`model list` shows their ids")
    if action in _TAKES_NONE and model is not None:
        raise ConfigError(field="model", value=model, problem=f"{action} takes no model", fix="leave it out")
    for name, own in (("other", "compare"), ("policy", "replay")):
        if (action == own) != (getattr(arguments, name) is not None):
            problem, fix = (f"{own} needs it", "give it") if action == own else (f"{action} does not take it", "leave it out")
            raise ConfigError(field=name, value=getattr(arguments, name), problem=problem, fix=fix)
    workspace = read_workspace(arguments.workspace_json)
    apply_permissions(workspace)
    dataset = workspace.resolve_dataset(arguments.dataset)
    found: dict[str, Any]
    if action == "list":
        found = overview.overview(workspace, dataset)
        text = overview.overview_text(found)
    elif action == "show":
        found = overview.details(workspace, dataset, model)
        text = overview.details_text(found)
    elif action == "compare":
        found, text = _compare(workspace, dataset, arguments)
    elif action == "replay":
        found, text = _replay(workspace, dataset, arguments)
    else:
        found, text = _change(workspace, dataset, arguments)
    print(json.dumps(found, indent=1) if arguments.json else text)
    return Exit.DONE


def _compare(workspace: Workspace, dataset: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from nnunet_jobs.selection.two_models import compare_models, comparison_text

    found = compare_models(workspace, dataset, arguments.model, arguments.other)
    return found, comparison_text(found)


def _replay(workspace: Workspace, dataset: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from nnunet_jobs.selection.replay import replay, replay_text

    found = replay(workspace, dataset, _read_policy(Path(arguments.policy)))
    return found, replay_text(found)


def _read_policy(path: Path) -> PromotionPolicy:
    import yaml

    try:
        data = yaml.safe_load(path.read_text())  # JSON is YAML too
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(field="policy", value=str(path), problem=f"is neither YAML nor JSON ({error})") from error
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise ConfigError(field="policy", value=str(path), problem="must hold fields of the policy", fix="write promote: if_better")
    return PromotionPolicy.from_json(data)


def _change(workspace: Workspace, dataset: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from nnunet_jobs.registry import overview, promotion
    from nnunet_jobs.registry.ledger import Entry, as_json
    from nnunet_jobs.registry.requests import once
    from nnunet_jobs.registry.standing import hold_in_words, standing_of

    given = [] if arguments.model is None else [arguments.model]
    more = {"by": arguments.user} | ({"why": arguments.why} if arguments.why else {})

    def change(facts: Mapping[str, str] | None = None) -> Entry | None:
        made: Entry | None = getattr(promotion, arguments.action)(workspace, dataset, *given, **more, facts=facts)
        return made

    entry = once(workspace, dataset, arguments.request, change) if arguments.request else change()
    champion, held = workspace.champion(dataset), hold_in_words(standing_of(workspace, dataset).hold)
    found = {"dataset": dataset, "champion": champion, "held": held, "entry": as_json(entry) if entry else None}
    text = overview.move_text(dataset, entry, champion, held)
    return {**found, "text": text}, text


MODEL = Command(
    name="model",
    help="show, compare, promote, pin or retire a dataset's models; roll back; replay",
    declare=_declare,
    run=_run,
)
