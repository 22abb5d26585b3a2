"""``airflow nnunet mark-workspace`` marks the workspace's folders."""

from __future__ import annotations

import argparse
import sys

from airflow_nnunet.cli.command import command
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.workspace_memory import DatabaseMemory
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.storage.marker import mark_workspace, read_marker


@command
def mark_command(args: argparse.Namespace) -> int:
    """Mark the existing folders as the workspace, because a person says that no share is missing."""
    from sqlalchemy.exc import SQLAlchemyError

    workspace = resolve_config(args.conn_id, team=args.team).workspace
    mark_workspace(workspace)
    marker = read_marker(workspace.jobs) or {"workspace": "", "roots": {}}
    try:
        DatabaseMemory().remember(workspace.jobs, marker["workspace"])
    except SQLAlchemyError as error:
        first = str(error).splitlines()[0]
        print(f"Airflow's database does not answer ({first}), so only the markers record the workspace", file=sys.stderr)
    print(f"marked {', '.join([workspace.jobs, *marker['roots'].values()])}")
    return Exit.DONE
