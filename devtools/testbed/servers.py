"""Runs a private PostgreSQL and Redis of Debian on loopback, which a test can stop, kill and start again."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest import SkipTest

_DEBIAN = Path("/usr/lib/postgresql")
_START_S = 60.0
_STOP_S = 60.0


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a database, or raise SkipTest, which pytest understands too, with what is missing."""
    if reason := Postgres.missing():
        raise SkipTest(reason)
    with _life(Postgres()) as server:
        yield server


@contextmanager
def running_redis() -> Iterator[Redis]:
    """Start a broker, or raise SkipTest, which pytest understands too, with what is missing."""
    if reason := Redis.missing():
        raise SkipTest(reason)
    with _life(Redis()) as server:
        yield server


class Server(ABC):
    """Runs one server process with its own folder and port. After ``stop`` or ``kill`` it can start again on the same
    port.

    The folder is directly below the temporary directory, because a database that refuses root cannot enter root's
    folders.
    """

    user: str | None = None

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        if self.user:
            os.chown(self.folder, *_ids(self.user))
        self.port = _free_port()
        self.password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that starts the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether a client gets an answer."""

    def start(self) -> None:
        """Start and wait until it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_identity(self.user),
            )
        deadline = time.monotonic() + _START_S
        while not self.answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as an administrator would, which interrupts its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it and delete all its data."""
        with suppress(ProcessLookupError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """Return the end of its output."""
        return (self.folder / "server.log").read_text(errors="replace")[-3000:]

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_STOP_S)
            self._process = None


class Postgres(Server):
    """Runs a database cluster without fsync, which survives a kill of the server but not of the machine."""

    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root

    def __init__(self) -> None:
        super().__init__()
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self.user:
            os.chown(secret, *_ids(self.user))
        self._run("initdb", "-D", "data", "-U", "airflow", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--no-sync")
        secret.unlink()

    @staticmethod
    def missing() -> str | None:
        """Return why no database can be started here, or None if one can."""
        if _postgres_programs() is None:
            return f"no PostgreSQL below {_DEBIAN}; apt-get install postgresql"
        if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            return "PostgreSQL refuses root and there is no user postgres; apt-get install postgresql"
        return None

    def command(self) -> list[str]:
        """See :meth:`Server.command`."""
        options = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off", "full_page_writes": "off",
            "synchronous_commit": "off", "max_connections": 200, "shared_buffers": "64MB",
        }  # fmt: skip
        return [_program("postgres"), "-D", "data", *(word for name, value in options.items() for word in ("-c", f"{name}={value}"))]

    def answers(self) -> bool:
        """See :meth:`Server.answers`."""
        import psycopg2

        try:
            psycopg2.connect(self.url("postgres").replace("+psycopg2", "")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Create an empty database and return its address."""
        import psycopg2
        from psycopg2 import sql

        connection = psycopg2.connect(self.url("postgres").replace("+psycopg2", ""))
        connection.autocommit = True
        try:
            connection.cursor().execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        finally:
            connection.close()
        return self.url(name)

    def url(self, database: str) -> str:
        """Return the address of a database for SQLAlchemy."""
        return f"postgresql+psycopg2://airflow:{self.password}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **_identity(self.user),
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Redis(Server):
    """Runs a broker that writes every command to its append-only file, so that it has its queues again after a kill."""

    def __init__(self) -> None:
        super().__init__()
        # Settings are in a file, because every user of the machine can read a command line.
        settings = self.folder / "redis.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {self.folder}\n"
            'appendonly yes\nappendfsync always\nsave ""\nloglevel notice\n'
        )

    @staticmethod
    def missing() -> str | None:
        """Return why no broker can be started here, or None if one can."""
        return None if shutil.which("redis-server") else "no redis-server; apt-get install redis-server"

    @property
    def url(self) -> str:
        """Return the address of the broker for Celery."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """See :meth:`Server.command`."""
        return ["redis-server", str(self.folder / "redis.conf")]

    def answers(self) -> bool:
        """See :meth:`Server.answers`."""
        import redis

        client = redis.Redis.from_url(self.url)
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()

    def forget(self) -> None:
        """Delete its data while it is stopped."""
        assert self._process is None, "stop it first"
        shutil.rmtree(self.folder / "appendonlydir")


S = TypeVar("S", bound=Server)


@contextmanager
def _life(server: S) -> Iterator[S]:
    try:
        server.start()
        yield server
    finally:
        server.close()


def _postgres_programs() -> Path | None:
    """Return the folder of the newest version's programs."""
    found = [path.parent for path in _DEBIAN.glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def _program(name: str) -> str:
    folder = _postgres_programs()
    assert folder is not None
    return str(folder / name)


def _identity(user: str | None) -> dict[str, Any]:
    """Return the arguments with which a subprocess runs as another user, without our groups."""
    if user is None:
        return {}
    uid, gid = _ids(user)
    return {"user": uid, "group": gid, "extra_groups": []}


def _ids(user: str) -> tuple[int, int]:
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
