"""Runs a real nginx, with the files of docker/ moved to another folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from airflow_nnunet.prediction_api.rest_client import wait_until

DOCKER = Path(__file__).resolve().parents[2] / "docker"
# Path of the stream module in Debian's package. The public image has it built in.
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def missing() -> str | None:
    """Return what is not installed here, or None."""
    if shutil.which("nginx"):
        return None
    return "needs nginx (Debian: nginx-light)"


def lay_out(folder: Path, changes: Sequence[tuple[str, str]], *, front: str) -> None:
    """Write nginx.conf and all its files below ``folder``, which every user must be able to reach.

    Args:
        changes: Pairs of old and new strings, applied before the paths are changed.
        front: File that is mounted as front.conf.
    """
    folder.chmod(0o755)
    moves = [
        ("/tmp/", f"{folder}/tmp-"),  # first, because the folder itself may be there
        *changes,
        ("/etc/nginx/mime.types", "/etc/nginx-mime.types"),
        ("/etc/nginx/", f"{folder}/"),
        ("/etc/nginx-mime.types", "/etc/nginx/mime.types"),
        ("/run/secrets/", f"{folder}/"),
        ("/dev/stderr", f"{folder}/log"),
        ("/dev/stdout", f"{folder}/log"),
    ]
    sources = {"nginx.conf": DOCKER / "nginx.conf", "front.conf": DOCKER / "nginx" / front}
    for path in (DOCKER / "nginx").rglob("*.conf"):
        sources.setdefault(str(path.relative_to(DOCKER / "nginx")), path)
    for name, path in sources.items():
        text = path.read_text()
        for old, new in moves:
            text = text.replace(old, new)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "modules-enabled").mkdir()


@contextlib.contextmanager
def running(folder: Path, *, listens: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx with the files of :func:`lay_out`. A warning about them is an error."""
    # As root, nginx would run its workers as user nobody, who cannot read the test's folder. Containers have no root.
    whoami = "user root;" if os.geteuid() == 0 else ""
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log"), "-g", f"daemon off; {whoami}"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(listens, timeout_s=20, interval_s=0.01, what=lambda: f"nginx; its log is {folder / 'log'}")
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=20)
