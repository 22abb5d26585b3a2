"""``airflow nnunet init|doctor|usage|dataset`` and the others; ``python -m airflow_nnunet`` where the package is not installed."""

from __future__ import annotations

from typing import Any


def get_cli_commands() -> list[Any]:
    """What the provider adds to Airflow's command line. Imports no more than a parser needs."""
    from airflow.cli import cli_config
    from airflow.cli.cli_config import ActionCommand, GroupCommand, lazy_load_command
    from rich.markup import escape

    def argument(flags: tuple[str, ...], *, help: str, **more: Any) -> Any:
        made: Any = cli_config.Arg  # Airflow's own class has no annotations
        # Airflow shows help through rich, which takes brackets for markup.
        return made(flags, help=escape(help), **more)

    path = argument(
        ("path",), nargs="?", default=None, help="file with pools; include/pools.json of the site, else of the package, when empty"
    )
    folder = argument(("folder",), nargs="?", default=None, metavar="FOLDER", help="where to; AIRFLOW_HOME when empty")
    no_dags = argument(("--no-dags",), action="store_true", help="leave out the DAG files, for those who use the package's DAG bundle")
    connection = argument(("--conn-id",), default=None, help="connection of type nnunet that overrides section [nnunet]")
    dataset = argument(("dataset",), help="dataset: its id, its full name, or the name after the id")
    as_json = argument(("--json",), action="store_true", help="print JSON")
    team = argument(("--team",), default=None, help="name of a file in include/teams")
    usage = (
        argument(("--since",), default=None, metavar="DAY", help="first day (UTC), such as 2026-01-01; of this month when empty"),
        argument(("--until",), default=None, metavar="DAY", help="day at whose beginning (UTC) the sum ends; now when empty"),
        team,
        cli_config.ARG_OUTPUT,
        argument(("--json",), action="store_true", help="print one JSON object with the span, the rows, their total and what is left out"),
        connection,
    )
    withdraw = (
        dataset,
        argument(("--case",), action="extend", nargs="+", metavar="ID", help="case ids"),
        argument(("--group",), action="extend", nargs="+", metavar="PATIENT", help="patients: all of their cases, later ones too"),
        argument(("--reason",), default=None, help="for the history; one line, never patient data"),
        argument(("--dry-run",), action="store_true", help="only say what would go"),
        argument(("--restore",), action="store_true", help="lift an earlier withdrawal: the next registration may bring the cases again"),
        argument(("--predictions",), action="store_true", help="delete the cases' predictions below output_roots too"),
        argument(("--demote",), action="store_true", help="a promoted model that was trained on them is no longer the champion"),
        as_json,
        team,
        connection,
    )
    predict = (
        argument(("images",), nargs="+", metavar="FILE", help="images of one case, one a channel, in the model's order"),
        argument(("--dataset",), required=True, help="whose model: its id or its full name"),
        argument(("--model",), default=None, help="model id; the promoted one when empty"),
        argument(("--wait",), action="store_true", help="until it has ended; prints the volumes"),
        argument(("--output",), default=None, metavar="PATH", help="wait, and save the segmentation here"),
        argument(("--timeout",), type=float, default=3600.0, metavar="SECONDS", help="for --wait; the prediction goes on after it"),
        argument(("--key",), default=None, help="Idempotency-Key: the same key and files are the same prediction"),
        argument(("--url",), default=None, help="of the API server; NNUNET_API_URL, else [api] base_url when empty"),
        as_json,
    )
    datasets = GroupCommand(
        name="dataset",
        help="List datasets, show how one came to be, withdraw cases from it",
        subcommands=(
            ActionCommand(
                name="list",
                help="Registered datasets: cases, content hash, last change, preprocessed version, promoted model",
                func=lazy_load_command("airflow_nnunet.cli.datasets.list_command"),
                args=(as_json, team, connection),
            ),
            ActionCommand(
                name="log",
                help="History of a dataset: who, when, what, content hash before and after",
                func=lazy_load_command("airflow_nnunet.cli.datasets.log_command"),
                args=(dataset, as_json, team, connection),
            ),
            ActionCommand(
                name="withdraw",
                help="Consent was withdrawn: take cases out of the dataset, its versions and predictions, list the models trained on them",
                func=lazy_load_command("airflow_nnunet.cli.datasets.withdraw_command"),
                args=withdraw,
            ),
        ),
    )
    return [
        GroupCommand(
            name="nnunet",
            help="Look after nnU-Net's workspace, datasets, pools and jobs",
            subcommands=(
                datasets,
                ActionCommand(
                    name="init",
                    help="Write what a site edits: pools, examples, DAG files and a template of airflow.cfg; never overwrites",
                    func=lazy_load_command("airflow_nnunet.cli.init.init_command"),
                    args=(folder, no_dags),
                ),
                ActionCommand(
                    name="doctor",
                    help="Check folders, disk, memory, compiler, GPUs, versions and pools; each line says ok or the fix",
                    func=lazy_load_command("airflow_nnunet.doctor.command.doctor_command"),
                    args=(team, connection),
                ),
                ActionCommand(
                    name="usage",
                    help="GPU hours by team and dataset, from every workspace that you may read",
                    func=lazy_load_command("airflow_nnunet.cli.usage.usage_command"),
                    args=usage,
                ),
                ActionCommand(
                    name="predict",
                    help="Post a case to the prediction API; NNUNET_API_TOKEN, or NNUNET_API_USERNAME and NNUNET_API_PASSWORD, log in",
                    func=lazy_load_command("airflow_nnunet.cli.predict.predict_command"),
                    args=predict,
                ),
                ActionCommand(
                    name="mark-workspace",
                    help="Mark the workspace's folders as mounted and in use; the first job does it where no share can be missing",
                    func=lazy_load_command("airflow_nnunet.cli.workspace.mark_command"),
                    args=(team, connection),
                ),
                ActionCommand(
                    name="sync-pools",
                    help="Create or update the pools of a file and of the teams; slots 'auto' means the number of GPUs, else cpu_slots",
                    func=lazy_load_command("airflow_nnunet.cli.pools.sync_pools_command"),
                    args=(path, connection),
                ),
            ),
        )
    ]
