"""Registers the plugin if this folder is used without installation. An installed package does so by its entry point."""

from __future__ import annotations

from importlib.metadata import entry_points

if not any(point.value == "airflow_nnunet.plugin:NnunetPlugin" for point in entry_points(group="airflow.plugins")):
    from airflow_nnunet.plugin import NnunetPlugin

    __all__ = ["NnunetPlugin"]
