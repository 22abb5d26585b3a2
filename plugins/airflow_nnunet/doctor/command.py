"""``airflow nnunet doctor`` checks whether this host can run jobs. Each line says ok, or the problem and the fix."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from airflow_nnunet.cli.command import command
from airflow_nnunet.cli.pools import probe_host
from airflow_nnunet.doctor.backend import examine_backend, runs_here
from airflow_nnunet.doctor.datasets import examine_datasets
from airflow_nnunet.doctor.executor import examine_executor
from airflow_nnunet.doctor.finding import SYNC, Finding
from airflow_nnunet.doctor.host import gpus, memory, pool, versions
from airflow_nnunet.doctor.jobs import examine_jobs
from airflow_nnunet.doctor.marker import examine_marker
from airflow_nnunet.doctor.predictions import examine_predictions
from airflow_nnunet.doctor.privacy import examine_privacy
from airflow_nnunet.settings.config import NnunetConfig
from airflow_nnunet.settings.pool_names import ARCHIVE_POOL
from airflow_nnunet.settings.resolver import resolve_config
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.exit_codes import Exit
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.storage.file_systems import network_file_system
from nnunet_jobs.contract.storage.permissions import (
    blocking_path,
    describe_permissions,
    explain_permission_error,
    permission_problem,
    whoami,
)
from nnunet_jobs.contract.storage.withdrawals import Tombstones
from nnunet_jobs.contract.storage.workspace import ROOTS

# A preprocessed dataset of a few hundred volumes takes tens of GB, so less than this will not be enough.
_LOW_DISK_GIB = 20
_OURS = (".locks", ".state", ".versions")  # owned by the user who ran the first job


def examine(config: NnunetConfig) -> Iterator[Finding]:
    """Yield all findings of the doctor, in the order in which a person would fix them."""
    yield from _roots(config)
    yield from examine_marker(config)
    yield from _user_folders(config)
    yield from examine_privacy(config.workspace)
    yield from _withdrawals(config)
    yield from examine_backend(config)
    host = None
    try:
        host = probe_host(config) if runs_here(config) else None
    except ConfigError as error:
        yield Finding(
            topic="python", ok=False, blocks=True,
            text=f"{error}. Install airflow-provider-nnunet[local] there, or set python in section [nnunet]",
        )  # fmt: skip
    if host is not None:
        yield from versions(host)
        yield from memory(host)
        yield from gpus(host)
    yield pool(config, host)
    yield from _teams()
    yield from examine_executor()
    yield from _archives()
    yield from examine_jobs(config)
    yield from examine_datasets(SYNC)
    yield from examine_predictions(SYNC)


def _roots(config: NnunetConfig) -> Iterator[Finding]:
    for name in ROOTS:
        path = Path(getattr(config.workspace, name))
        trouble = _unwritable(path) or next((found for sub in _OURS if (path / sub).is_dir() and (found := _unwritable(path / sub))), "")
        if trouble:
            yield Finding(
                topic=name, ok=False, blocks=True,
                text=f"{path}: {trouble}; make it writable for this user, or set {name} in section [nnunet]",
            )  # fmt: skip
            continue
        free = shutil.disk_usage(_existing(path)).free / 2**30
        closed = permission_problem(config.workspace, path)
        if closed:
            yield Finding(topic=name, ok=False, text=closed)
        enough = free >= _LOW_DISK_GIB or name in ("jobs", "leases")
        fix = "" if enough else f"; below {_LOW_DISK_GIB} GiB, free space or move {name} to another disk"
        there = "is writable" if path.is_dir() else "does not exist yet and can be created"
        yield Finding(topic=name, ok=enough, text=f"{path} {there}, {free:.0f} GiB free{fix}")
    leases = _existing(Path(config.workspace.leases))
    try:
        kind = network_file_system(leases)
    except OSError:
        return  # there is already a finding that the folder cannot be used
    if kind is not None:
        yield Finding(
            topic="leases", ok=False, blocks=True,
            text=f"{leases} is on {kind}; kernel locks need a local disk, set leases in section [nnunet] to one",
        )  # fmt: skip


def _user_folders(config: NnunetConfig) -> Iterator[Finding]:
    workspace = config.workspace
    if not workspace.input_roots:
        yield Finding(topic="input_roots", ok=False, text="none, so no dataset can be registered; set input_roots in section [nnunet]")
    for path in workspace.input_roots:
        readable = os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)
        yield Finding(
            topic="input_roots", ok=readable, text=f"{path} is readable" if readable else f"{path}: not a folder that this user can read"
        )
    for path in workspace.output_roots:
        trouble = _unwritable(Path(path))
        yield Finding(topic="output_roots", ok=not trouble, text=f"{path}: {trouble}" if trouble else f"{path} is writable")
    for path in workspace.trainer_paths:
        there = os.path.isdir(path)
        yield Finding(topic="trainer_paths", ok=there, text=path if there else f"{path}: no such folder")


def _withdrawals(config: NnunetConfig) -> Iterator[Finding]:
    """Yield datasets with withdrawn cases of which something may still exist."""
    try:
        names = list(config.workspace.datasets().values())
    except PermissionError:  # there is already a finding about raw
        return
    for name in names:
        try:
            cases = Tombstones(config.workspace, name).incomplete()
        except PermissionError as error:
            yield Finding(topic="withdrawals", ok=False, blocks=True, text=explain_permission_error(error))
            continue
        except ConfigError as error:
            yield Finding(topic="withdrawals", ok=False, blocks=True, text=str(error))
            continue
        if cases:
            again = f"airflow nnunet dataset withdraw {name} --case {' '.join(cases)}"
            yield Finding(topic="withdrawals", ok=False, text=f"{len(cases)} cases of {name} are not removed everywhere; run {again}")


def _teams() -> Iterator[Finding]:
    """Yield findings about the teams' files and pools."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    teams = load_teams()
    for name, error in teams.errors.items():
        yield Finding(topic=f"team {name}", ok=False, blocks=True, text=error)
    try:
        with create_session() as session:
            missing = [name for name, team in teams.configs.items() if Pool.get_pool(team.pool_name, session=session) is None]
    except SQLAlchemyError:
        return  # there is already a finding about the database
    for name, team in teams.configs.items():
        lost = f"pool {team.pool_name} is missing, the team's tasks would wait forever; {SYNC}"
        text = lost if name in missing else f"pool {team.pool_name} exists, roots are below {team.nnunet.workspace}"
        yield Finding(topic=f"team {name}", ok=name not in missing, blocks=name in missing, text=text)


def _archives() -> Iterator[Finding]:
    """Yield findings about the dicomweb connections in Airflow's database, each asked for one study, and their pool."""
    from airflow.models.connection import Connection
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_nnunet.dicomweb.hook import open_archive
    from airflow_nnunet.jobs.exceptions import NnunetJobError

    try:
        with create_session() as session:
            archives = list(session.query(Connection).filter(Connection.conn_type == "dicomweb").order_by(Connection.conn_id))
            session.expunge_all()
            pool = Pool.get_pool(ARCHIVE_POOL, session=session) is not None
    except SQLAlchemyError:
        return  # there is already a finding about the database
    for connection in archives:
        topic = f"archive {connection.conn_id}"
        try:
            archive = open_archive(connection, tries=1)
            archive.ping()
        except NnunetJobError as error:
            yield Finding(topic=topic, ok=False, text=str(error))
        else:
            yield Finding(topic=topic, text=f"{archive.endpoint.url} answers")
    if archives and not pool:
        yield Finding(topic=f"pool {ARCHIVE_POOL}", ok=False, text=f"missing, retrieval would wait forever; {SYNC}")


def _unwritable(path: Path) -> str:
    """Return why nothing can be written to a folder or to its nearest existing parent, or an empty string."""
    there = _existing(path)
    try:
        if not there.is_dir():
            return f"{there} is not a folder"
        with tempfile.TemporaryFile(dir=there):
            return ""
    except PermissionError:
        return f"cannot write as {whoami()}: {describe_permissions(blocking_path(there / 'file') or there)}"
    except OSError as error:
        return f"cannot write ({error.strerror or error})"


def _existing(path: Path) -> Path:
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path


@command
def doctor_command(args: argparse.Namespace) -> int:
    """Print a line for each finding, and fail if one of them keeps jobs from running."""
    try:
        config = resolve_config(args.conn_id, team=args.team)
    except ConfigError as error:
        print(f"FAIL  configuration: {error}")
        return Exit.FAILED
    blocked = False
    for finding in examine(config):
        print(finding)
        blocked |= finding.blocks
    return Exit.FAILED if blocked else Exit.DONE
