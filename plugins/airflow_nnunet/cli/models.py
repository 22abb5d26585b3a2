"""``airflow nnunet model``: shows a dataset's models, and changes which one is the champion."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from airflow_nnunet.cli.command import command
from airflow_nnunet.cli.datasets import find_dataset
from airflow_nnunet.jobs.jobs_command import run_jobs_command
from airflow_nnunet.settings.resolver import resolve_config


def _model_command(action: str) -> Callable[[argparse.Namespace], None]:
    """Return the command that hands an action to ``python -m nnunet_jobs model``, by the interpreter of the jobs."""

    @command
    def run(args: argparse.Namespace) -> int:
        config = resolve_config(args.conn_id, team=args.team)
        dataset = find_dataset(config.workspace, args.dataset)
        person = getattr(args, "user", None) or os.environ.get("SUDO_USER")
        values = {"--user": person, "--why": getattr(args, "why", None), "--policy": getattr(args, "policy", None)}
        words = [f"{flag}={value}" for flag, value in values.items() if value]
        line = ["model", "--workspace-json", "-", *(["--json"] if args.json else []), *words, "--", action, dataset]
        given = [model for name in ("model", "other") if (model := getattr(args, name, None)) is not None]
        return run_jobs_command(config.python, *line, *given, input=json.dumps(config.workspace.to_json())).returncode

    return run


list_command = _model_command("list")
show_command = _model_command("show")
compare_command = _model_command("compare")
replay_command = _model_command("replay")
promote_command = _model_command("promote")
rollback_command = _model_command("rollback")
retire_command = _model_command("retire")
pin_command = _model_command("pin")
release_command = _model_command("release")
