"""Shows a job's log, folder and report to users who may read the job's DAG. The pages are read-only.

Airflow does not protect a plugin's pages. So each page asks Airflow whether the user may read the logs of the job's
DAG, and the teams' files whether the user is a member of the job's team. If not, the answer is 404, as for an unknown
job. Without a login a browser is redirected to the login page, and a program gets 401. Only the configured jobs folders
are read: ids have a fixed form, names are from a fixed list, and links are not followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import Environment, StrictUndefined
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_nnunet.jobs.links import URL_PREFIX
from airflow_nnunet.settings.resolver import owned_job_roots
from airflow_nnunet.settings.teams import load_teams
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.folder import JobDir
from nnunet_jobs.contract.job.spec import JOB_ID

_TAIL_BYTES = 256 * 1024
_SHOWN_BYTES = 1024 * 1024
_REPORT = "report.html"
_REPORT_BYTES = 32 * 1024 * 1024
_READABLE = (".json", ".jsonl", ".txt")
# A log may contain anything, and nothing in it may run as a page of Airflow.
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Content-Type-Options": "nosniff"}
# A report contains pictures. Scripts in it would neither run nor act as the user.
_REPORT_HEADERS = {**_HEADERS, "Content-Security-Policy": f"{_HEADERS['Content-Security-Policy']}; img-src data:; sandbox"}

_FOLDER = Environment(autoescape=True, undefined=StrictUndefined).from_string("""<!doctype html><title>{{ job_id }}</title>
<style>body{font:14px sans-serif;margin:2em}td{padding:.2em 1.5em .2em 0}td+td{text-align:right}</style>
<h1>{{ job_id }}</h1>
<p>attempt {{ state.attempt }}, {{ state.phase }}{% if state.message %}: {{ state.message }}{% endif %}</p>
<p>{{ folder }}</p>
<table>
{% for name, size in files %}<tr><td><a href="files/{{ name }}">{{ name }}</a></td><td>{{ "{:,}".format(size) }}</td></tr>
{% endfor %}</table>
<p><a href="log">end of the log</a>{% if report %} · <a href="report">dataset report</a>{% endif %}</p>
""")


def create_app() -> FastAPI:
    """Return the app that the plugin mounts."""
    app = FastAPI(
        title="nnU-Net jobs",
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{_airflow(request)}/api/v2/auth/login?{urlencode({'next': str(request.url)})}", 307)
        return await http_exception_handler(request, error)

    app.get("/jobs/{job_id}/log")(job_log)
    app.get("/jobs/{job_id}/")(job_folder)
    app.get("/jobs/{job_id}/files/{name}")(job_file)
    app.get("/jobs/{job_id}/report")(job_report)
    return app


def readable_folder(request: Request, user: GetUserDep, job_id: str) -> Path:
    """Return the folder of a job, for a user who may read it.

    Raises:
        HTTPException: 404, there is no such job, or the user may not read it.
    """
    folder, team = find_job(job_id)
    try:
        spec = JobDir(folder).spec()
    except (OSError, ValueError, ConfigError) as error:
        raise _unknown() from error
    dag_id = spec.labels.get("dag_id")
    if not dag_id:
        raise _unknown()  # it is not known who may read it
    try:
        requires_access_dag("GET", DagAccessEntity.TASK_LOGS, dag_id)(request, user)
    except AnyHTTPException as error:
        raise _unknown() from error
    if not all(_is_member(user.get_name(), name) for name in {team, spec.team} if name):
        raise _unknown()
    return folder


Folder = Annotated[Path, Depends(readable_folder)]


def job_log(folder: Folder, tail: Annotated[int, Query(ge=1, le=16 * 1024 * 1024)] = _TAIL_BYTES) -> PlainTextResponse:
    """Return the last ``tail`` bytes of the job's log as plain text."""
    return PlainTextResponse(_read(folder, "log.txt", tail), headers=_HEADERS)


def job_file(folder: Folder, name: str) -> PlainTextResponse:
    """Return one of the job's text files."""
    if name not in _names(folder):
        raise HTTPException(404, "no such file in this job")
    return PlainTextResponse(_read(folder, name, _SHOWN_BYTES), headers=_HEADERS)


def job_folder(folder: Folder) -> HTMLResponse:
    """Return a page with the job's files and state."""
    job_id = folder.name
    state = JobDir(folder).state()
    files = [(name, (folder / name).lstat().st_size) for name in _names(folder)]
    page = _FOLDER.render(job_id=job_id, state=state, folder=folder, files=files, report=(folder / _REPORT).is_file())
    return HTMLResponse(page, headers=_HEADERS)


def job_report(folder: Folder) -> HTMLResponse:
    """Return the page that a step wrote about its data."""
    page = _read(folder, _REPORT, _REPORT_BYTES)
    if not page:
        raise HTTPException(404, "no report in this job; it is written when the check of the dataset ends")
    return HTMLResponse(page, headers=_REPORT_HEADERS)


def find_job(job_id: str) -> tuple[Path, str | None]:
    """Return the folder of a job, and the team whose jobs folder it is in.

    Raises:
        HTTPException: 404, the job is in no jobs folder that this server can read.
    """
    if JOB_ID.fullmatch(job_id):
        for root, team in owned_job_roots().items():
            folder = Path(root) / job_id
            with contextlib.suppress(OSError):  # a folder that cannot be read must not hide jobs in others
                if stat.S_ISDIR(folder.lstat().st_mode):
                    return folder, team
    raise _unknown()


def _unknown() -> HTTPException:
    """Return the same answer for unknown and forbidden jobs. It says if whole jobs folders cannot be read."""
    unread = sum(not _is_filled(root) for root in owned_job_roots())
    where = "the jobs folders of section [nnunet] and of the teams"
    if unread:
        why = "no job has run there, or it was moved, is not mounted, or the server's user may not read it"
        where += f"; {unread} of these folders cannot be read on this server ({why}): airflow nnunet doctor says more"
    return HTTPException(404, f"no such job that you may read in {where}")


def _is_filled(root: str) -> bool:
    """Return whether a jobs folder can be read and is not empty, as a mount point without its share is."""
    try:
        return bool(os.listdir(root))
    except OSError:
        return False


def _is_member(user: str, team: str) -> bool:
    """Return whether a user may read a team's jobs. Without members in its file, all who may read the DAG may do so."""
    config = load_teams().configs.get(team)
    return config is not None and (not config.predictions.members or user in config.predictions.members)


def _airflow(request: Request) -> str:
    """Return the path of Airflow's own pages, with the path of the base URL."""
    path: str = request.scope.get("root_path", "")
    return path.removesuffix(URL_PREFIX).rstrip("/")


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False) and entry.name.endswith(_READABLE))


def _read(folder: Path, name: str, last: int) -> str:
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise HTTPException(404, "no such file in this job") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise HTTPException(404, "no such file in this job")
    with open(fd, "rb") as file:
        size = status.st_size
        file.seek(max(0, size - last))
        text = file.read(last).decode(errors="replace")
    return f"... {size - last:,} bytes before\n{text}" if size > last else text
