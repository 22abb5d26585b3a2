"""Pages behind the extra links: a job's log, its folder and its report, read-only, for users who may see plugins.

Airflow does not protect a plugin's pages by itself, so the whole app depends on its access check: 401 without a login. Nothing
outside the configured jobs root is ever read: ids have a fixed form, names come from a fixed list, links are not followed.
"""

from __future__ import annotations

import html
import os
import stat
from pathlib import Path
from typing import Annotated

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.responses import HTMLResponse, PlainTextResponse

from airflow_nnunet.teams import job_roots
from nnunet_jobs.contract.jobdir import JobDir
from nnunet_jobs.contract.spec import JOB_ID

_TAIL_BYTES = 256 * 1024
_SHOWN_BYTES = 1024 * 1024
_REPORT = "report.html"
_REPORT_BYTES = 32 * 1024 * 1024
_READABLE = (".json", ".jsonl", ".txt")
# A log line may hold anything; nothing in it may ever run as a page of Airflow's.
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Content-Type-Options": "nosniff"}
# A report holds pictures. Its own scripts, if it could ever have any, would not run, nor act as the user.
_REPORT_HEADERS = {**_HEADERS, "Content-Security-Policy": f"{_HEADERS['Content-Security-Policy']}; img-src data:; sandbox"}


def create_app() -> FastAPI:
    """The app that the plugin mounts."""
    app = FastAPI(
        title="nnU-Net jobs",
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.get("/jobs/{job_id}/log")(job_log)
    app.get("/jobs/{job_id}/")(job_folder)
    app.get("/jobs/{job_id}/files/{name}")(job_file)
    app.get("/jobs/{job_id}/report")(job_report)
    return app


def job_log(job_id: str, tail: Annotated[int, Query(ge=1, le=16 * 1024 * 1024)] = _TAIL_BYTES) -> PlainTextResponse:
    """The last ``tail`` bytes of the job's log as plain text."""
    folder = _folder(job_id)
    return PlainTextResponse(_read(folder, "log.txt", tail), headers=_HEADERS)


def job_file(job_id: str, name: str) -> PlainTextResponse:
    """One of the job's own text files."""
    folder = _folder(job_id)
    if name not in _names(folder):
        raise HTTPException(404, "no such file in this job")
    return PlainTextResponse(_read(folder, name, _SHOWN_BYTES), headers=_HEADERS)


def job_folder(job_id: str) -> HTMLResponse:
    """What is in the job's directory, and how far it is."""
    folder = _folder(job_id)
    state = JobDir(folder).state()
    rows = "".join(
        f'<tr><td><a href="files/{html.escape(name)}">{html.escape(name)}</a></td><td>{(folder / name).lstat().st_size:,}</td></tr>'
        for name in _names(folder)
    )
    report = ' · <a href="report">dataset report</a>' if (folder / _REPORT).is_file() else ""
    page = (
        f"<!doctype html><title>{html.escape(job_id)}</title>"
        "<style>body{font:14px sans-serif;margin:2em}td{padding:.2em 1.5em .2em 0}td+td{text-align:right}</style>"
        f"<h1>{html.escape(job_id)}</h1><p>attempt {state.attempt}, {html.escape(str(state.phase))}"
        f"{': ' + html.escape(state.message) if state.message else ''}</p>"
        f'<p>{html.escape(str(folder))}</p><table>{rows}</table><p><a href="log">end of the log</a>{report}</p>'
    )
    return HTMLResponse(page, headers=_HEADERS)


def job_report(job_id: str) -> HTMLResponse:
    """The page that a step wrote about its data."""
    page = _read(_folder(job_id), _REPORT, _REPORT_BYTES)
    if not page:
        raise HTTPException(404, "no report in this job; it is written when the check of the dataset ends")
    return HTMLResponse(page, headers=_REPORT_HEADERS)


def _folder(job_id: str) -> Path:
    if not JOB_ID.fullmatch(job_id):
        raise HTTPException(404, "no such job")
    for root in job_roots():
        folder = Path(root) / job_id
        if not folder.is_symlink() and folder.is_dir():
            return folder
    raise HTTPException(404, "no such job in the jobs folders of section [nnunet] and of the teams")


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
