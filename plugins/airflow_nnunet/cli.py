"""``airflow nnunet doctor`` and ``airflow nnunet sync-pools``; also ``python -m airflow_nnunet`` where the package is not installed."""

from __future__ import annotations

from typing import Any


def get_cli_commands() -> list[Any]:
    """What the provider adds to Airflow's command line. Imports no more than a parser needs."""
    from airflow.cli import cli_config
    from airflow.cli.cli_config import ActionCommand, GroupCommand, lazy_load_command

    argument: Any = cli_config.Arg  # Airflow's own class has no annotations

    path = argument(("path",), nargs="?", default=None, help="file with pools; include/pools.json of the project when empty")
    connection = argument(("--conn-id",), default=None, help="connection of type nnunet that overrides section [nnunet]")
    return [
        GroupCommand(
            name="nnunet",
            help="Look after nnU-Net's workspace, pools and jobs",
            subcommands=(
                ActionCommand(
                    name="doctor",
                    help="Check folders, disk, memory, compiler, GPUs, versions and pools; each line says ok or the mend",
                    func=lazy_load_command("airflow_nnunet.doctor.doctor_command"),
                    args=(connection,),
                ),
                ActionCommand(
                    name="sync-pools",
                    help="Create or update the pools of a file; slots 'auto' means the number of GPUs, else cpu_slots",
                    func=lazy_load_command("airflow_nnunet.pools.sync_pools_command"),
                    args=(path, connection),
                ),
            ),
        )
    ]
