"""Logins of Airflow's API server for pages in this process: real tokens, Airflow's own checks, and DAGs that some may not read."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from airflow import settings
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser


class AuthManager(SimpleAuthManager):
    """Airflow's simple one, with DAGs that a user may not read, as other auth managers can say."""

    hidden: ClassVar[dict[str, set[str]]] = {"carol": {"dag"}}

    def is_authorized_dag(self, *, user: Any, details: Any = None, **asked: Any) -> bool:
        """By role, and by DAG."""
        hidden = details is not None and details.id in self.hidden.get(user.get_name(), ())
        return not hidden and super().is_authorized_dag(user=user, details=details, **asked)


def token(user: str, role: str = "viewer") -> str:
    """A login."""
    return create_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=role, teams=None))


@contextmanager
def api_server(database: Path) -> Iterator[None]:
    """This process with a migrated database and the auth manager above."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{database}")
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", f"{__name__}.AuthManager")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(database.with_name("passwords.json")))
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(64))
        _connect()
        create_auth_manager().init()
        yield
        settings.dispose_orm()
    _connect()


def _connect() -> None:
    settings.dispose_orm()
    settings.configure_vars()
    settings.configure_orm()
