"""Describes this provider to Airflow. It imports nothing, because Airflow reads it at every start."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
"""Version of the distribution. The build reads it from this file, users read ``airflow_nnunet.__version__``."""

_PATH_LIST = "Absolute folders, separated by ':' or ','."


def _option(description: str, default: str | None, *, type_: str = "string", example: str | None = None) -> dict[str, Any]:
    return {"description": description, "version_added": "0.1.0", "type": type_, "example": example, "default": default}


# The only source of airflow.cfg's documentation, the defaults of config.py and the connection's form.
OPTIONS: dict[str, dict[str, Any]] = {
    "workspace": _option(
        "Folder that holds nnUNet_raw, nnUNet_preprocessed, nnUNet_results, jobs, leases and predictions. "
        "Workers and triggerer must see it under the same path.",
        "{AIRFLOW_HOME}/nnunet",
        example="/data/nnunet",
    ),
    "raw": _option("nnUNet_raw, when it is not in the workspace folder.", ""),
    "preprocessed": _option("nnUNet_preprocessed, when it is not in the workspace folder. A fast disk makes training faster.", ""),
    "results": _option("nnUNet_results, when it is not in the workspace folder.", ""),
    "jobs": _option("Job directories (specification, log, metrics, result), when they are not in the workspace folder.", ""),
    "leases": _option("GPU and CPU lease ledger, when it is not in the workspace folder. It must be on a local disk of each host.", ""),
    "input_roots": _option(f"Users may name input only below these. {_PATH_LIST}", "", example="/data/incoming,/archive/studies"),
    "output_roots": _option(
        f"Users may name output only below these. {_PATH_LIST} Empty means the folder predictions in the workspace.", ""
    ),
    "trainer_paths": _option(f"Folders with your own nnU-Net trainer classes. {_PATH_LIST}", ""),
    "sharing": _option(
        "Who may use the files that jobs write: private (the user that jobs run as, 0600 and 0700), group (the folder's group may write, "
        "missing roots are created with setgid, others get nothing) or group_others_read (others may read). Default ACLs take precedence.",
        "private",
        example="group",
    ),
    "backend": _option(
        "Where jobs run: local (a detached process on the worker's host), docker (one container each), kubernetes (one pod each), fake "
        "(scripted, for tests), or the name of a backend that another installed package adds.",
        "local",
    ),
    "backend_options": _option(
        "Options of the backend, as a JSON object; include/backends and include/kubernetes have examples.",
        "",
        example='{"image": "nnunet-jobs:0.1.0", "user": "50000:50000"}',
    ),
    "python": _option("Interpreter that has nnU-Net and this package. Empty means Airflow's own.", "", example="/opt/nnunet/bin/python"),
    "cpu_slots": _option("Number of jobs that may compute at once on a host without a GPU.", "1", type_="integer"),
    "datasets": _option("Folder of dataset files; include/datasets beside the DAGs folder when empty.", "", example="/srv/datasets"),
    "teams": _option("Folder of team files; include/teams beside the DAGs folder when empty.", "", example="/srv/teams"),
    "predictor_servers": _option(
        "Prediction API: addresses of predictor servers (python -m nnunet_jobs serve) of this workspace, separated by ','. They are asked "
        "first. If none is up or all are full, the request's own job loads the model. Teams name their servers in their files.",
        "",
        example="http://127.0.0.1:8600,unix:/run/nnunet/serve.sock",
    ),
    "predictions_quota": _option(
        "Prediction API: unfinished requests that a team may have at once, with uploads, unless its file has another number.",
        "20",
        type_="integer",
    ),
    "predictions_limit": _option("Prediction API: unfinished requests of all teams at once.", "200", type_="integer"),
    "predictions_keep_days": _option("Prediction API: days until a request's images and result are removed.", "30", type_="integer"),
    "predictions_upload_mib": _option("Prediction API: size of one request's images in MiB.", "512", type_="integer"),
    "predictions_free_mib": _option("Prediction API: disk space in MiB that an upload must leave free.", "1024", type_="integer"),
    "poll_interval": _option("Seconds between two checks of a running job.", "2.0", type_="float"),
    "task_log": _option(
        "What a task's log shows of its job: full (also the job's own log, while it is written) or progress (only progress).", "full"
    ),
    "lost_after": _option("Seconds without a heartbeat after which a job counts as lost and is started again.", "120.0", type_="float"),
    "defer_after": _option(
        "Seconds that a task waits for its job in the worker before it defers, so that short jobs never defer. A deferred task stays "
        "deferred for at least as long, because Airflow may mark a task as failed that returns sooner.",
        "10.0",
        type_="float",
    ),
}

_CHOICES = {
    "sharing": ["private", "group", "group_others_read"],
    "task_log": ["full", "progress"],
}
# These are suggestions and not choices, because another package may add a backend.
_EXAMPLES = {"backend": ["local", "docker", "kubernetes"]}
_FORM_TYPES = {"string": "string", "integer": "integer", "float": "number"}
# Fields of a connection of type nnunet: the options that may differ between teams.
NNUNET_FIELDS: dict[str, dict[str, Any]] = {
    name: {
        "label": label,
        "description": f"{OPTIONS[name]['description']} If empty here, that of section [nnunet] is used.",
        "schema": {
            "type": [_FORM_TYPES[OPTIONS[name]["type"]], "null"],
            **({"enum": _CHOICES[name]} if name in _CHOICES else {}),
            **({"examples": _EXAMPLES[name]} if name in _EXAMPLES else {}),
            **({"format": "multiline"} if name == "backend_options" else {}),
        },
    }
    for name, label in {
        "workspace": "Workspace",
        "input_roots": "Input roots",
        "output_roots": "Output roots",
        "trainer_paths": "Folders of trainers",
        "raw": "nnUNet_raw",
        "preprocessed": "nnUNet_preprocessed",
        "results": "nnUNet_results",
        "jobs": "Job folders",
        "leases": "Lease ledger",
        "sharing": "Sharing",
        "backend": "Backend",
        "backend_options": "Backend options",
        "python": "Interpreter",
        "cpu_slots": "CPU slots",
        "poll_interval": "Poll interval",
        "lost_after": "Lost after",
        "defer_after": "Defer after",
        "task_log": "Task log",
    }.items()
}

# Fields of a dicomweb connection's extra, used by the connection's form and by the hook's checks.
DICOMWEB_FIELDS: dict[str, dict[str, Any]] = {
    name: {"label": label, "description": description, "schema": {"type": ["string", "null"], **more}}
    for name, label, description, more in (
        ("base_path", "Base path", "Path of the DICOMweb service. Empty means dicom-web; a single / means none.", {}),
        ("qido_prefix", "QIDO prefix", "Sub-path of queries, if the archive has one.", {}),
        ("wado_prefix", "WADO prefix", "Sub-path of retrieval, if the archive has one.", {}),
        ("stow_prefix", "STOW prefix", "Sub-path of storage, if the archive has one.", {}),
        ("verify", "CA bundle", "Absolute path of a CA bundle. Empty means the system's. Checking cannot be turned off.", {}),
        ("timeout_s", "Timeout", "Seconds to wait for the archive's next bytes; 60 when empty.", {}),
        ("tries", "Tries", "Number of requests before a task fails and Airflow retries it; 5 when empty.", {}),
        ("token", "Bearer token", "Token to use instead of login and password.", {"format": "password"}),
    )
}


_NNUNET, _DICOMWEB = "nnU-Net", "DICOMweb"
_GUIDES = ("add-a-dataset", "reuse-an-operator", "nightly-retraining", "hospital-etl", "rest", "when-things-break")


def _modules(integration: str, *names: str) -> dict[str, Any]:
    return {"integration-name": integration, "python-modules": [f"airflow_nnunet.{name}" for name in names]}


def get_provider_info() -> dict[str, Any]:
    """Return all that the package provides, in the form of Airflow's provider schema."""
    return {
        "package-name": "airflow-provider-nnunet",
        "name": "nnU-Net",
        "description": "Medical images from a folder to a trained, selected and promoted nnU-Net v2 model.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _NNUNET,
                "external-doc-url": "https://github.com/MIC-DKFZ/nnUNet",
                "how-to-guide": [f"/docs/how-to/{name}.md" for name in _GUIDES],
                "tags": ["ai", "machine-learning"],
            },
            {
                "integration-name": _DICOMWEB,
                "external-doc-url": "https://www.dicomstandard.org/using/dicomweb",
                "how-to-guide": ["/docs/how-to/dicom.md"],
                "tags": ["protocol"],
            },
        ],
        "operators": [
            _modules(_NNUNET, *(f"operators.{name}" for name in ("register", "preprocess", "train", "find_best_config", "predict"))),
            _modules(_DICOMWEB, "dicomweb.operators"),
        ],
        "sensors": [_modules(_DICOMWEB, "dicomweb.sensor")],
        "hooks": [_modules(_NNUNET, "settings.hook"), _modules(_DICOMWEB, "dicomweb.hook")],
        "triggers": [_modules(_NNUNET, "jobs.trigger"), _modules(_DICOMWEB, "dicomweb.trigger")],
        "bundles": [_modules(_NNUNET, "dag_bundle")],
        # There is no handler, because addresses such as nnunet://dataset/Dataset004_Hippocampus need no change.
        "asset-uris": [{"schemes": ["nnunet"], "handler": None}],
        # Listed here as in Airflow's own providers, but loaded by its entry point. Airflow loads plugins of this list
        # only if lazy_discover_providers is off, and then warns that this one is registered already.
        "plugins": [{"name": "nnunet", "plugin-class": "airflow_nnunet.plugin.NnunetPlugin"}],
        "config": {
            "nnunet": {
                "description": "Where nnU-Net's data is and where its jobs run. A connection of type nnunet can override options for one "
                "team or one task.",
                "options": {name: {**option, "sensitive": False} for name, option in OPTIONS.items()},
            }
        },
        "connection-types": [
            {
                "hook-class-name": "airflow_nnunet.settings.hook.NnunetHook",
                "hook-name": "nnU-Net workspace",
                "connection-type": "nnunet",
                "conn-fields": NNUNET_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "login", "password", "port"],
                    "relabeling": {},
                    "placeholders": {"extra": '{"workspace": "/data/radiology/nnunet", "input_roots": "/data/radiology/incoming"}'},
                },
            },
            {
                "hook-class-name": "airflow_nnunet.dicomweb.hook.DicomWebHook",
                "hook-name": "DICOMweb archive",
                "connection-type": "dicomweb",
                "conn-fields": DICOMWEB_FIELDS,
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {"schema": "http or https"},
                    "placeholders": {"host": "pacs.example", "schema": "https", "port": "443"},
                },
            },
        ],
        "extra-links": [f"airflow_nnunet.jobs.links.{name}" for name in ("JobLogLink", "JobFolderLink", "DatasetReportLink")],
        "cli": ["airflow_nnunet.cli.definition.get_cli_commands"],
    }
