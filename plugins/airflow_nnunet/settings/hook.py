"""Connection type ``nnunet``, which holds the workspace of one team."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from airflow.sdk import BaseHook

from nnunet_jobs.contract.failure import ConfigError


class NnunetHook(BaseHook):
    """Reads a connection's extra, which overrides options of section [nnunet]: ``{"workspace": "/data/radiology"}``."""

    conn_name_attr: ClassVar[str] = "nnunet_conn_id"
    default_conn_name: ClassVar[str] = "nnunet_default"
    conn_type: ClassVar[str] = "nnunet"
    hook_name: ClassVar[str] = "nnU-Net workspace"

    def __init__(self, nnunet_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.nnunet_conn_id = nnunet_conn_id

    def overrides(self) -> dict[str, Any]:
        """Return the option names and values of the connection's extra.

        Raises:
            ConfigError: The connection is of another type, or its extra is not a JSON object.
        """
        connection = self.get_connection(self.nnunet_conn_id)
        if connection.conn_type != self.conn_type:
            raise ConfigError(f"connection {self.nnunet_conn_id!r}: is of type {connection.conn_type!r}; name one of type {self.conn_type}")
        extra = connection.extra
        if not extra:
            return {}
        try:
            options = json.loads(extra)
        except ValueError as error:
            raise ConfigError(f"connection {self.nnunet_conn_id!r}: extra must be a JSON object of [nnunet] options") from error
        if not isinstance(options, dict):
            raise ConfigError(f"connection {self.nnunet_conn_id!r}: extra must be a JSON object of [nnunet] options")
        # A field left empty in the connection's form is stored as null and does not override the section.
        return {name: value for name, value in options.items() if value is not None and value != ""}

    def get_conn(self) -> Any:
        """Return the connection's :class:`~airflow_nnunet.settings.config.NnunetConfig`."""
        from airflow_nnunet.settings.config import NnunetConfig, section_options

        return NnunetConfig.from_options({**section_options(), **self.overrides()})

    def test_connection(self) -> tuple[bool, str]:
        """Return for the UI's test button whether the roots can be read from the connection, and a message."""
        try:
            config = self.get_conn()
        except ConfigError as error:
            return False, str(error)
        return True, f"nnUNet_raw is {config.workspace.raw}"
