"""Runs a private Airflow on loopback below one folder: API server, scheduler, DAG processor, triggerer and others.

Airflow's own ``standalone`` binds all interfaces, ignores SIGINT in the background and leaves child processes after
SIGTERM. Here each component has its own session and log file, and is stopped by its pid.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from airflow_nnunet.prediction_api.rest_client import AirflowClient, wait_until
from devtools.stack_components import CORE, Component
from devtools.stack_config import USER, password_file, read_config, write_config
from nnunet_jobs.contract.storage.files import write_private

PROJECT = Path(__file__).resolve().parents[1]
_START_S = 180.0
_STOP_S = 20.0
# Home of the stack that started a process. AIRFLOW_HOME is not used, because the shell of a person may have it too.
_MARK = "NNUNET_STACK"


class StackError(RuntimeError):
    """A component did not start; the message has the end of its log."""


class Stack:
    """Runs one private Airflow. Use it as a context manager, or ``start`` and ``stop`` it, also from different
    processes.

    Args:
        home: AIRFLOW_HOME with configuration, logs, passwords and SQLite's database.
        dags: Folder with DAG files.
        settings: Options by ``section.option``, which override ``airflow.cfg.template`` and the stack's own.
        environment: Additional environment variables of every component.
        port: Port of the API server and UI; a free one when empty.
        executor: Executor of the tasks.
        database: Address of the database for SQLAlchemy; SQLite below ``home`` if None.
        extra: Processes beside Airflow's own four, such as Celery workers.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        executor: str = "LocalExecutor",
        database: str | None = None,
        extra: Sequence[Component] = (),
    ) -> None:
        self.home = home.absolute()
        self._dags = (dags or PROJECT / "dags").absolute()
        own = {"core.executor": executor} | ({"database.sql_alchemy_conn": database} if database else {})
        self._settings = own | dict(settings or {})
        self._environment = dict(environment or {})
        self._port = port
        self._components = {component.name: component for component in (*CORE, *extra)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: AirflowClient | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- life ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Write the configuration, migrate the database, start every component and wait until all are healthy."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self.runs:
            raise StackError(f"an Airflow runs below {self.home} already; stop it first")
        try:
            write_config(self.home, template=PROJECT / "airflow.cfg.template", dags=self._dags, settings=self._settings, port=self._port)
            self.airflow("db", "migrate")
            for name in self._components:
                self._spawn(name)
            since = dt.datetime.now(dt.UTC)
            for name in self._components:
                self._wait_ready(name, since)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every component by its pid, then all other processes of the stack, if any run."""
        for pid in reversed(self._running().values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._wait_gone(_STOP_S)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._wait_gone(_STOP_S)
        for process in self._processes.values():
            process.wait(timeout=_STOP_S)
        self._processes.clear()
        if self._client is not None:
            self._client.close()
            self._client = None
        (self.home / "stack.json").unlink(missing_ok=True)

    def kill(self, component: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one component, and wait for its end if the signal ends it."""
        os.kill(self.pid(component), number)
        if number in (signal.SIGKILL, signal.SIGTERM) and component in self._processes:
            self._processes[component].wait(timeout=60)

    def kill_with_children(self, component: str) -> None:
        """Send SIGKILL to a component and its session, with tasks but without jobs, which have sessions of their own."""
        session = self.pid(component)
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)
        self._processes[component].wait(timeout=60)

    def restart_ended(self) -> list[str]:
        """Restart components that have ended, as a service manager does, and return their names without waiting."""
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        for name in ended:
            self._spawn(name)
        return ended

    def restart(self, component: str) -> None:
        """Start a component again after its end, and wait until it is healthy."""
        if component in self._processes and self._processes[component].poll() is None:
            raise StackError(f"{component} still runs; stop it first")
        since = dt.datetime.now(dt.UTC)
        self._spawn(component)
        self._wait_ready(component, since)

    # --- what is known about it ---------------------------------------------------------------------------------
    @property
    def runs(self) -> bool:
        """Return whether a component of this stack runs, also if another process started it."""
        return bool(self._running())

    @property
    def url(self) -> str:
        """Return the address of the UI and the API."""
        return str(read_config(self.home).get("api", "base_url"))

    @property
    def username(self) -> str:
        """Return the user of the UI and the API."""
        return USER

    @property
    def password(self) -> str:
        """Return the generated password of :attr:`username`."""
        return str(json.loads(password_file(self.home).read_text())[USER])

    @property
    def client(self) -> AirflowClient:
        """Return a client of the REST API."""
        if self._client is None:
            self._client = AirflowClient(self.url, username=self.username, password=self.password)
        return self._client

    def pid(self, component: str) -> int:
        """Return the process id of a component."""
        return self._running()[component]

    def log_file(self, component: str) -> Path:
        """Return the file of a component's output."""
        return self.home / "logs" / f"{component}.log"

    def processes(self) -> list[int]:
        """Return the pids of all processes of this stack: components, their workers, and detached jobs with its mark.

        Airflow's processes rename themselves, which overwrites their environment in /proc, so they are found by their
        session.
        """
        sessions = {entry["pid"] for entry in self._recorded().values() if not _reused(entry["pid"], entry["started"])}
        found = []
        for process in psutil.process_iter():
            if process.pid != os.getpid():
                with contextlib.suppress(OSError, psutil.Error):
                    ours = os.getsid(process.pid) in sessions or process.environ().get(_MARK) == str(self.home)
                    if ours and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                        found.append(process.pid)
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment of every component, with the mark, and without AIRFLOW settings of the calling shell."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        return env | {"AIRFLOW_HOME": str(self.home), _MARK: str(self.home), "PYTHONUNBUFFERED": "1"} | self._environment

    def airflow(self, *arguments: str) -> str:
        """Run one ``airflow`` command in this stack's environment and return its output.

        Raises:
            StackError: The command failed.
        """
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"airflow {' '.join(arguments)} failed with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout

    # --- private ------------------------------------------------------------------------------------------------
    def _spawn(self, component: str) -> None:
        with open(self.log_file(component), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *self._components[component].arguments],
                env={**self.environment(), **self._components[component].environment},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[component] = process
        started = _started(process.pid)
        recorded = self._recorded()
        if component in recorded:  # workers of a killed scheduler are still found by its session
            recorded[f"{component}-{recorded[component]['pid']}"] = recorded[component]
        recorded[component] = {"pid": process.pid, "started": started}
        write_private(self.home / "stack.json", json.dumps(recorded).encode())

    def _wait_ready(self, component: str, since: dt.datetime) -> None:
        process = self._processes[component]

        def ready() -> bool:
            if process.poll() is not None:
                tail = self.log_file(component).read_text(errors="replace")[-4000:]
                raise StackError(f"{component} ended with {process.returncode} while starting; end of its log:\n{tail}")
            return self._components[component].is_ready(self.client, since)

        wait_until(ready, timeout_s=_START_S, interval_s=0.25, what=lambda: f"{component} healthy; see {self.log_file(component)}")

    def _running(self) -> dict[str, int]:
        """Return the pids of running components, also if another process started them."""
        alive = set(self.processes())
        return {name: entry["pid"] for name, entry in self._recorded().items() if entry["pid"] in alive}

    def _recorded(self) -> dict[str, dict[str, int]]:
        try:
            known: dict[str, dict[str, int]] = json.loads((self.home / "stack.json").read_text())
        except FileNotFoundError:
            return {}
        return known

    def _wait_gone(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for process in self._processes.values():
                process.poll()  # reap it, so that a zombie does not seem to run
            if not self.processes():
                return
            time.sleep(0.1)


def _started(pid: int) -> int:
    """Return when a process started, in clock ticks since the host's start.

    psutil's ``create_time`` is in seconds of the wall clock, which may be set while the stack runs.
    """
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _reused(pid: int, started: int) -> bool:
    """Return whether a pid now belongs to another process. A session outlives its leader, so a missing leader is no reuse."""
    try:
        return _started(pid) != started
    except OSError:
        return False
