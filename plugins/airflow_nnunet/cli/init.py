"""``airflow nnunet init`` writes the files that a site edits, and prints the next steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from airflow_nnunet.cli.command import command
from airflow_nnunet.settings.config import airflow_home
from airflow_nnunet.settings.project_files import write_site
from nnunet_jobs.contract.exit_codes import Exit

_NEXT = """
Next:
1. Copy the options that you need from {folder}/airflow.cfg.template to airflow.cfg, or set them as variables
     AIRFLOW__<SECTION>__<OPTION>. Three options must be set: [nnunet] workspace and input_roots, and [api_auth] jwt_secret, one
     secret for all components, without which no task can run.
  2. airflow db migrate            creates Airflow's database, or updates it
  3. airflow nnunet sync-pools     creates the pools of {folder}/include/pools.json
  4. airflow nnunet doctor         shows what is still missing
5. Copy an example in {folder}/include/datasets to a name that ends in .yaml, and edit it. It becomes a DAG when Airflow runs
     (airflow standalone on one machine)."""


@command
def init_command(args: argparse.Namespace) -> int:
    """Write the files and print one line for each of them."""
    folder = Path(args.folder).expanduser().absolute() if args.folder else airflow_home()
    for written in write_site(folder, dags=not args.no_dags):
        print(f"{'kept   ' if written.kept else 'written'}  {folder / written.path}")
    print(_NEXT.format(folder=folder))
    return Exit.DONE
