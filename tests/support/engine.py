"""A Docker engine of the tests' own: its data, socket and containers below one folder, nothing of the host's network touched.

No registry of images is reachable, so a base image comes from Debian's packages (``debootstrap``) and is kept for later sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from nnunet_jobs.contract.storage.files import locked
from support.jobs import wait_for

PROJECT = Path(__file__).resolve().parents[2]
BASE = "nnunet-test-base:bookworm"
JOBS = "nnunet-test-jobs:latest"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PACKAGES = "python3,python3-venv,ca-certificates"


def require_engine() -> None:
    """Skip where no engine can be started."""
    missing = [tool for tool in ("dockerd", "docker", "containerd", "debootstrap") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: install docker.io and debootstrap")
    if os.geteuid() != 0:
        pytest.skip("a Docker engine of the tests' own needs root")


class Engine:
    """A ``dockerd`` with containerd; start it by entering, and nothing of it is left after.

    Args:
        root: Folder for everything.
        live_restore: Containers go on while the engine is away.
        path: More folders for its PATH.
        options: More of dockerd's.
    """

    def __init__(self, root: Path, *options: str, live_restore: bool = False, path: Path | None = None) -> None:
        self.root = root
        self.options = options
        self.live_restore = live_restore
        self.path = path
        # Unix sockets' names are short; pytest's folders are not.
        self._sockets = Path(tempfile.mkdtemp(prefix="nnunet-engine-"))
        self.url = f"unix://{self._sockets}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self.start()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()

    def start(self) -> None:
        """Start the daemon, again after :meth:`kill`, and wait until it answers.

        One that ends by itself is started again, as a service manager does: dockerd gives up where it finds a dying containerd.
        """
        for tries_left in (2, 1, 0):
            process = self._process = self._start()
            wait_for(partial(self._decided, process), timeout_s=60, what=f"dockerd; its log is {self.root / 'dockerd.log'}")
            if process.poll() is None:
                return
            assert tries_left, (self.root / "dockerd.log").read_text()[-4000:]
            (self._sockets / "docker.pid").unlink(missing_ok=True)

    def _start(self) -> subprocess.Popen[bytes]:
        config = self.root / "daemon.json"
        config.write_text(json.dumps({"live-restore": self.live_restore}))
        environment = dict(os.environ)
        if self.path:
            environment["PATH"] = f"{self.path}:{environment['PATH']}"
        with open(self.root / "dockerd.log", "ab") as log:
            return subprocess.Popen(
                [
                    "dockerd",
                    f"--config-file={config}",
                    f"--data-root={self.root / 'data'}",
                    f"--exec-root={self._sockets / 'exec'}",
                    f"--pidfile={self._sockets / 'docker.pid'}",
                    f"--host={self.url}",
                    "--bridge=none",
                    "--iptables=false",
                    "--ip-masq=false",
                    *self.options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to the daemon alone; its containerd and the containers stay."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        (self._sockets / "docker.pid").unlink(missing_ok=True)

    def docker(self, *arguments: str, **options: Any) -> str:
        """One ``docker`` command; returns what it printed."""
        done = subprocess.run(
            ["docker", "-H", self.url, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DOCKER_CONFIG": str(self.root), "DOCKER_BUILDKIT": "0"},
            **options,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments[:3])}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows about a container."""
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]
        return found

    def containers(self, *, everything: bool = True) -> list[str]:
        """Names of containers, ended ones included."""
        arguments = ["ps", "--format", "{{.Names}}", *(["-a"] if everything else [])]
        return self.docker(*arguments).split()

    def load_base(self) -> str:
        """The base image, made once for a user of this machine."""
        self.docker("import", str(base_archive()), BASE)
        return BASE

    def build_jobs(self, *, base: str = BASE) -> str:
        """A small image that runs jobs with the tests' own steps: standard library only, no nnU-Net."""
        context = self.root / "jobs-image"
        shutil.rmtree(context, ignore_errors=True)
        for source in ("plugins/nnunet_jobs", "plugins/airflow_nnunet", "tests/support"):
            shutil.copytree(PROJECT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        (context / "Dockerfile").write_text(
            f"FROM {base}\nCOPY . /opt/nnunet\nENV PYTHONPATH=/opt/nnunet/plugins:/opt/nnunet/tests PYTHONDONTWRITEBYTECODE=1\n"
            "RUN useradd --uid 1000 nnunet\nUSER nnunet\n"
        )
        self.docker("build", "--quiet", "--network=none", "--tag", JOBS, str(context))
        return JOBS

    # --- private ------------------------------------------------------------------------------------------------
    def _decided(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the daemon answers or has ended."""
        if process.poll() is not None:
            return True
        with contextlib.suppress(AssertionError):
            self.docker("version")
            return True
        return False

    def _clean(self) -> None:
        """Remove containers, end the daemon and whatever it started, unmount and remove everything."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(AssertionError):
                if names := self.containers():
                    self.docker("rm", "--force", *names)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
        marker = str(self._sockets)
        deadline = time.monotonic() + 30
        while (left := _processes(marker)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = line.split()[1]
            if target.startswith((str(self.root), str(self._sockets))):
                subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
        shutil.rmtree(self._sockets, ignore_errors=True)
        shutil.rmtree(self.root / "data", ignore_errors=True)


def base_archive() -> Path:
    """A small Debian with Python as a tar file, from this machine's own package sources; kept in ``NNUNET_TEST_CACHE``."""
    default = Path(tempfile.gettempdir()) / f"nnunet-test-cache-{os.getuid()}"
    cache = Path(os.environ.get("NNUNET_TEST_CACHE", default))
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive = cache / "base-bookworm.tar"
    with locked(cache / "lock", interval=0.2):
        if not archive.exists():
            _make_base(cache, archive)
    return archive


def _make_base(cache: Path, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        root = Path(folder) / "root"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"debootstrap cannot make a base image here: {made.stdout[-300:]}")
        for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
            shutil.rmtree(root / name, ignore_errors=True)
        if CA_BUNDLE.exists():
            shutil.copy(CA_BUNDLE, root / "etc/ssl/certs/ca-certificates.crt")
        partial = Path(folder) / "base.tar"
        with tarfile.open(partial, "w") as tar:
            for entry in sorted(root.iterdir()):
                if entry.name not in ("proc", "sys", "dev"):
                    tar.add(entry, entry.name, recursive=True)
        partial.rename(archive)


def free_port() -> int:
    """A port of loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes(marker: str) -> list[int]:
    """Pids whose command line names the engine's folder: the daemon, containerd and its shims."""
    found = []
    for process in psutil.process_iter():
        if process.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                if marker in " ".join(process.cmdline()):
                    found.append(process.pid)
    return found
