"""``airflow nnunet dataset list|log|withdraw`` lists datasets, shows their history, and withdraws cases."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from airflow_nnunet.cli.command import command
from airflow_nnunet.jobs.jobs_command import run_jobs_command
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.contract.storage.workspace import Workspace

_KINDS = ("added", "changed", "moved", "removed", "withdrawn")
_SHOWN = 8


def dataset_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """Return for each dataset its name, cases by split, hash, last change, version, promoted model and problem."""
    rows = []
    for name in workspace.datasets().values():
        row: dict[str, Any] = {"dataset": name}
        try:
            manifest = workspace.manifest(name)
            splits = [entry["split"] for entry in manifest["cases"].values()]
            row |= {split: splits.count(split) for split in ("train", "holdout", "test")}
            last = manifest["history"][-1] if manifest["history"] else {}
            row |= {"hash": manifest["hash"], "at": last.get("at"), "by": last.get("by") or {}}
            row |= {"withdrawn": len(Tombstones(workspace, name).cases), "problem": None}
        except (ConfigError, ValueError, KeyError, OSError) as error:  # a dataset made by hand must not hide others
            row |= {"problem": str(error)}
        rows.append({**row, "version": workspace.current_version(name), "model": workspace.champion(name)})
    return rows


def dataset_history(workspace: Workspace, dataset: str) -> list[dict[str, Any]]:
    """Return a dataset's history, the oldest line first, with ``previous`` (earlier hash), ``by``, counts and
    ``cases``.

    Raises:
        ConfigError: There is no such dataset, or this package did not register it.
    """
    lines: list[dict[str, Any]] = []
    previous = None
    for line in workspace.manifest(find_dataset(workspace, dataset))["history"]:
        counts = {kind: line.get(kind, len(line.get("cases", {}).get(kind, ()))) for kind in _KINDS}
        lines.append(
            {**line, **counts, "previous": line.get("previous", previous), "by": line.get("by") or {}, "cases": line.get("cases", {})}
        )
        previous = line["hash"]
    return lines


def find_dataset(workspace: Workspace, dataset: str) -> str:
    """Return the full name of a dataset, given its id, its full name, or its name after the id if that is unique.

    Raises:
        ConfigError: There is no such dataset. The message names those that exist.
    """
    short = [name for name in workspace.datasets().values() if name.partition("_")[2] == dataset]
    return short[0] if len(short) == 1 else workspace.resolve_dataset(dataset)


def who(by: Mapping[str, str]) -> str:
    """Format a history line's ``by``: the person or else the process's user, and the DAG run."""
    person = by.get("triggered_by") or by.get("owner")
    name = f"{person} (as {by['user']})" if person and "user" in by else by.get("user", "unknown")
    return f"{name}, {by['dag_id']} {by.get('run_id', '')}".rstrip() if "dag_id" in by else name


def history_text(dataset: str, lines: list[dict[str, Any]]) -> str:
    """Format the history for people, the newest line first."""
    out = [dataset]
    for line in reversed(lines):
        counts = ", ".join(f"{line[kind]} {kind}" for kind in _KINDS if line[kind]) or "settings"
        out.append(f"{line['at']}  {counts}  by {who(line['by'])}")
        out.append(f"    hash {line['previous'] or 'none'} -> {line['hash']}")
        for kind in _KINDS:
            cases = line["cases"].get(kind, [])
            if cases:
                more = f" and {line[kind] - _SHOWN} more" if line[kind] > _SHOWN else ""
                out.append(f"    {kind}: {', '.join(cases[:_SHOWN])}{more}")
        for name, change in line.get("settings", {}).items():
            out.append(f"    {name}: {json.dumps(change['before'])} -> {json.dumps(change['after'])}")
        if line.get("reason"):
            out.append(f"    reason: {line['reason']}")
    return "\n".join(out)


# --- commands ---------------------------------------------------------------------------------------------------------
@command
def log_command(args: argparse.Namespace) -> int:
    """Run ``dataset log``."""
    workspace = resolve_config(args.conn_id, team=args.team).workspace
    name = find_dataset(workspace, args.dataset)
    lines = dataset_history(workspace, name)
    print(json.dumps({"dataset": name, "history": lines}, indent=1) if args.json else history_text(name, lines))
    return Exit.DONE


@command
def list_command(args: argparse.Namespace) -> int:
    """Run ``dataset list``."""
    rows = dataset_rows(resolve_config(args.conn_id, team=args.team).workspace)
    if args.json:
        print(json.dumps(rows, indent=1))
        return Exit.DONE
    for row in rows:
        if row["problem"]:
            print(f"{row['dataset']}  {row['problem']}")
            continue
        gone = f", {row['withdrawn']} withdrawn" if row["withdrawn"] else ""
        print(f"{row['dataset']}  {row['train']} train, {row['holdout']} holdout, {row['test']} test{gone}")
        print(f"    hash {row['hash']}, {row['at']} by {who(row['by'])}")
        print(f"    preprocessed {row['version'] or 'never'}, promoted model {row['model'] or 'none'}")
    if not rows:
        print("no dataset is registered")
    return Exit.DONE


@command
def withdraw_command(args: argparse.Namespace) -> int:
    """Run ``dataset withdraw`` with the interpreter of the jobs, because it has NumPy, and return its exit code."""
    config = resolve_config(args.conn_id, team=args.team)
    name = find_dataset(config.workspace, args.dataset)
    flags = [f"--{name.replace('_', '-')}" for name in ("dry_run", "restore", "predictions", "demote", "json") if getattr(args, name)]
    values = {"--case": args.case, "--group": args.group, "--reason": [args.reason] if args.reason else []}
    words = [f"{flag}={value}" for flag, given in values.items() for value in given or ()]
    if person := os.environ.get("SUDO_USER"):
        words.append(f"--user={person}")
    line = ["withdraw", "--workspace-json", "-", *flags, *words, "--", name]
    return run_jobs_command(config.python, *line, input=json.dumps(config.workspace.to_json())).returncode
