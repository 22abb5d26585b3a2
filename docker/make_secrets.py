"""Makes the secrets that compose.yaml reads, each in its own file. Existing files are kept, so it may run again.

python3 docker/make_secrets.py [--folder docker/secrets] [--users admin:admin,ward:viewer]
python3 docker/make_secrets.py --front nnunet.example    also docker/secrets/worker, for the hosts of compose.worker.yaml
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "secrets"
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_USERS = re.compile(r"[A-Za-z0-9._-]+:(?:viewer|user|op|admin)(?:,[A-Za-z0-9._-]+:(?:viewer|user|op|admin))*")
# Containers run as different users, and Compose mounts files with their owner and mode. So only the owner may enter the
# folder, and every user may read the files.
_FOLDER_MODE, _FILE_MODE = 0o700, 0o444
REDIS_PORT = 6380  # of compose.hosts.yaml


def redis_acl(password: str) -> str:
    """Return Redis' users: one for Celery without administration, one that may only ping, and no default user."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return (
        "user default off resetkeys resetchannels -@all\n"
        f"user airflow on #{digest} ~* &* +@all -@admin -@dangerous +info\n"
        "user health on nopass resetkeys resetchannels -@all +ping\n"
    )


def new_secrets(users: str) -> dict[str, str]:
    """Return random contents by file name."""
    postgres, redis = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    return {
        "postgres_password": postgres,
        "sql_alchemy_conn": f"postgresql+psycopg2://airflow:{postgres}@postgres:5432/airflow",
        "redis.acl": redis_acl(redis),
        "broker_url": f"redis://airflow:{redis}@redis:6379/0",
        "result_backend": f"redis://airflow:{redis}@redis:6379/1",
        "fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "api_secret_key": secrets.token_urlsafe(48),
        "jwt_secret": secrets.token_urlsafe(64),
        "ui_passwords.json": json.dumps({user.split(":")[0]: secrets.token_urlsafe(16) for user in users.split(",")}),
        "connections.json": "{}",
    }


# The files of a group must be made together.
_GROUPS = (("postgres_password", "sql_alchemy_conn"), ("redis.acl", "broker_url", "result_backend"))


def write_missing(folder: Path, contents: Mapping[str, str]) -> list[str]:
    """Write missing files and return their names.

    Raises:
        SystemExit: Some files of a group exist and others do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(_FOLDER_MODE)
    for group in _GROUPS:
        there = [name for name in group if (folder / name).exists()]
        if there and len(there) < len(group):
            missing = ", ".join(sorted(set(group) - set(there)))
            raise SystemExit(f"{folder}: {missing} missing, but {', '.join(there)} there; restore them, or remove the whole group")
    made = []
    for name, text in contents.items():
        path = folder / name
        if path.exists():
            continue
        temporary = folder / f".{name}.new"
        with open(temporary, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
        temporary.chmod(_FILE_MODE)
        temporary.rename(path)
        made.append(name)
    return made


def write_worker(folder: Path, front: str) -> Path:
    """Write the secrets that another host's worker needs: Redis by TLS through the front. Existing ones are replaced.

    Raises:
        SystemExit: The name is not a host name, or the front's certificate is missing.
    """
    if not _HOST.fullmatch(front):
        raise SystemExit(f"--front {front!r}: must be the name under which other hosts reach nginx, such as nnunet.example")
    authority = folder / "tls_ca.crt"
    if not authority.is_file():
        raise SystemExit(
            f"{authority}: missing; put the certificate of the authority that signed tls.crt there (tls.crt itself if it is self-signed)"
        )
    worker = folder / "worker"
    worker.mkdir(exist_ok=True)
    worker.chmod(_FOLDER_MODE)
    for name in ("broker_url", "result_backend"):
        url = (folder / name).read_text().replace("redis://", "rediss://").replace("@redis:6379/", f"@{front}:{REDIS_PORT}/")
        options = "?ssl_cert_reqs=required&ssl_ca_certs=/run/secrets/tls_ca.crt"
        _replace(worker / name, url.strip() + options)
    _replace(worker / "tls_ca.crt", authority.read_text())
    return worker


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(path, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)
    path.chmod(_FILE_MODE)


def main(argv: list[str]) -> int:
    """Write missing secrets and print their names, never their contents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--users", default="admin:admin", help="name:role of the UI's users, as in NNUNET_UI_USERS")
    parser.add_argument("--front", help="name of this host for other hosts' workers")
    options = parser.parse_args(argv)
    if not _USERS.fullmatch(options.users):
        parser.error(f"--users {options.users!r}: must be name:role[,name:role], with a role of viewer, user, op or admin")
    made = write_missing(options.folder, new_secrets(options.users))
    print(f"{options.folder}: " + (f"made {', '.join(made)}" if made else "nothing to make, all secrets are there"))
    if options.front:
        print(f"{write_worker(options.folder, options.front)}: for the hosts of workers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
