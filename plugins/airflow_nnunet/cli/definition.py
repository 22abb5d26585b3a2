"""Defines ``airflow nnunet`` and its commands, or ``python -m airflow_nnunet`` if the package is not installed."""

from __future__ import annotations

from typing import Any


def get_cli_commands() -> list[Any]:
    """Return the commands that the provider adds to Airflow's command line. Only a parser's needs are imported."""
    from airflow.cli import cli_config
    from airflow.cli.cli_config import ActionCommand, GroupCommand, lazy_load_command
    from rich.markup import escape

    def argument(flags: tuple[str, ...], *, help: str, **more: Any) -> Any:
        made: Any = cli_config.Arg  # Airflow's class has no annotations
        # Airflow shows help with rich, which reads brackets as markup.
        return made(flags, help=escape(help), **more)

    def command(name: str, function: str, args: tuple[Any, ...], *, help: str) -> Any:
        return ActionCommand(name=name, help=help, func=lazy_load_command(f"airflow_nnunet.{function}"), args=args)

    path = argument(
        ("path",), nargs="?", default=None, help="file with pools; by default include/pools.json of the site, or else of the package"
    )
    folder = argument(("folder",), nargs="?", default=None, metavar="FOLDER", help="folder to write to; AIRFLOW_HOME by default")
    no_dags = argument(("--no-dags",), action="store_true", help="leave out the DAG files, if you use the package's DAG bundle")
    connection = argument(("--conn-id",), default=None, help="connection of type nnunet that overrides section [nnunet]")
    dataset = argument(("dataset",), help="dataset: its id, its full name, or the name after the id")
    as_json = argument(("--json",), action="store_true", help="print JSON")
    team = argument(("--team",), default=None, help="name of a file in include/teams")
    usage = (
        argument(
            ("--since",), default=None, metavar="DAY", help="first day (UTC), such as 2026-01-01; by default the first day of this month"
        ),
        argument(("--until",), default=None, metavar="DAY", help="day at whose beginning (UTC) the sum ends; now by default"),
        team,
        cli_config.ARG_OUTPUT,
        argument(("--json",), action="store_true", help="print one JSON object with the span, the rows, their total and what is left out"),
        connection,
    )
    withdraw = (
        dataset,
        argument(("--case",), action="extend", nargs="+", metavar="ID", help="case ids"),
        argument(
            ("--group",), action="extend", nargs="+", metavar="PATIENT", help="patients; all of their cases are withdrawn, also later ones"
        ),
        argument(("--reason",), default=None, help="reason for the history: one line, without patient data"),
        argument(("--dry-run",), action="store_true", help="only print what would be removed"),
        argument(
            ("--restore",), action="store_true", help="undo an earlier withdrawal, so that the next registration may add the cases again"
        ),
        argument(("--predictions",), action="store_true", help="delete the cases' predictions below output_roots too"),
        argument(("--demote",), action="store_true", help="also remove the promotion of a model that was trained on them"),
        as_json,
        team,
        connection,
    )
    predict = (
        argument(("images",), nargs="+", metavar="FILE", help="images of one case, one for each channel, in the model's order"),
        argument(("--dataset",), required=True, help="dataset whose model predicts: its id or its full name"),
        argument(("--model",), default=None, help="model id; the promoted one by default"),
        argument(("--wait",), action="store_true", help="wait until the prediction has ended, and print the volumes"),
        argument(("--output",), default=None, metavar="PATH", help="wait, and save the segmentation to this file"),
        argument(("--timeout",), type=float, default=3600.0, metavar="SECONDS", help="limit for --wait; the prediction continues after it"),
        argument(("--key",), default=None, help="Idempotency-Key; the same key and files mean the same prediction"),
        argument(("--url",), default=None, help="address of the API server; by default NNUNET_API_URL, or else [api] base_url"),
        as_json,
    )
    datasets = GroupCommand(
        name="dataset",
        help="List datasets, show a dataset's history, withdraw cases",
        subcommands=(
            command(
                "list",
                "cli.datasets.list_command",
                (as_json, team, connection),
                help="List registered datasets: cases, content hash, last change, preprocessed version, promoted model",
            ),
            command(
                "log",
                "cli.datasets.log_command",
                (dataset, as_json, team, connection),
                help="Show the history of a dataset: who, when, what, content hash before and after",
            ),
            command(
                "withdraw",
                "cli.datasets.withdraw_command",
                withdraw,
                help="Remove cases from a dataset, its versions and predictions after a withdrawn consent; list models trained on them",
            ),
        ),
    )
    model = argument(("model",), help="model id; `model list` shows them")
    shown = argument(("model",), nargs="?", default=None, help="model id; the champion by default")
    earlier = argument(("model",), nargs="?", default=None, help="an earlier champion; by default the one before")
    other = argument(("other",), help="model id of the model to compare with")
    policy = argument(
        ("--policy",), required=True, metavar="FILE", help="YAML or JSON file with the policy's fields, such as promote and min_gain"
    )
    act = (
        argument(("--user",), default=None, help="the person who does it; the user of this process by default"),
        argument(("--why",), default=None, help="the reason for the ledger, in one sentence; never patient data"),
        as_json,
        team,
        connection,
    )
    models = GroupCommand(
        name="model",
        help="List and compare a dataset's models, promote one, roll back, retire, pin the champion",
        subcommands=(
            command("list", "cli.models.list_command", (dataset, as_json, team, connection), help="List the models, the newest first"),
            command(
                "show",
                "cli.models.show_command",
                (dataset, shown, as_json, team, connection),
                help="Show one model and what the ledger says of it",
            ),
            command(
                "compare",
                "cli.models.compare_command",
                (dataset, model, other, as_json, team, connection),
                help="Compare two models by label, by the hold-out scores that are kept beside them",
            ),
            command(
                "replay",
                "cli.models.replay_command",
                (dataset, policy, as_json, team, connection),
                help="Say what another promotion policy would have done, by the ledger and the kept hold-out scores",
            ),
            command("promote", "cli.models.promote_command", (dataset, model, *act), help="Make a model the champion"),
            command(
                "rollback",
                "cli.models.rollback_command",
                (dataset, earlier, *act),
                help="Make an earlier champion the champion again, and hold it until it is released",
            ),
            command("retire", "cli.models.retire_command", (dataset, model, *act), help="Never let a model be the champion again"),
            command(
                "pin",
                "cli.models.pin_command",
                (dataset, shown, *act),
                help="Hold the champion: no run promotes another until it is released",
            ),
            command("release", "cli.models.release_command", (dataset, *act), help="Let runs promote again, after a rollback or a pin"),
        ),
    )
    return [
        GroupCommand(
            name="nnunet",
            help="Manage nnU-Net's workspace, datasets, models, pools and jobs",
            subcommands=(
                datasets,
                models,
                command(
                    "init",
                    "cli.init.init_command",
                    (folder, no_dags),
                    help="Write the files that a site edits: pools, examples, DAG files and a template of airflow.cfg; never overwrites",
                ),
                command(
                    "doctor",
                    "doctor.command.doctor_command",
                    (team, connection),
                    help="Check folders, disk, memory, compiler, GPUs, versions and pools; each line says ok or the fix",
                ),
                command(
                    "usage",
                    "cli.usage.usage_command",
                    usage,
                    help="Show GPU hours by team and dataset, from every workspace that you may read",
                ),
                command(
                    "predict",
                    "cli.predict.predict_command",
                    predict,
                    help="Post a case to the prediction API; NNUNET_API_TOKEN, or NNUNET_API_USERNAME and NNUNET_API_PASSWORD, log in",
                ),
                command(
                    "mark-workspace",
                    "cli.workspace.mark_command",
                    (team, connection),
                    help="Mark the workspace's folders as mounted and in use; the first job does this if no share can be missing",
                ),
                command(
                    "sync-pools",
                    "cli.pools.sync_pools_command",
                    (path, connection),
                    help="Create or update the pools of a file and of the teams; slots 'auto' means the number of GPUs, or else cpu_slots",
                ),
            ),
        )
    ]
