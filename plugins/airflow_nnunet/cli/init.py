"""``airflow nnunet init``: write what a site edits, and say what comes next."""

from __future__ import annotations

import argparse
from pathlib import Path

from airflow_nnunet.cli.command import command
from airflow_nnunet.settings.config import airflow_home
from airflow_nnunet.settings.project_files import write_site
from nnunet_jobs.contract.exit_codes import Exit

_NEXT = """
Next:
  1. Look at {folder}/airflow.cfg.template and set [nnunet] workspace and input_roots, in airflow.cfg or as AIRFLOW__NNUNET__... variables.
  2. airflow nnunet sync-pools     creates the pools of {folder}/include/pools.json
  3. airflow nnunet doctor         says what is still missing
  4. Copy an example in {folder}/include/datasets to a name that ends in .yaml, and edit it: it becomes a DAG."""


@command
def init_command(args: argparse.Namespace) -> int:
    """The command: one line a file."""
    folder = Path(args.folder).expanduser().absolute() if args.folder else airflow_home()
    for written in write_site(folder, dags=not args.no_dags):
        print(f"{'kept   ' if written.kept else 'written'}  {folder / written.path}")
    print(_NEXT.format(folder=folder))
    return Exit.DONE
