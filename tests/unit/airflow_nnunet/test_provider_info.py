"""What Airflow is told about the provider: complete, true, and in the form of Airflow's own schemas."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.sdk import BaseHook, BaseNotifier, BaseOperator, BaseSensorOperator
from airflow.triggers.base import BaseTrigger

import airflow_nnunet
from airflow_nnunet.jobs.assets import dataset_asset
from airflow_nnunet.provider_info import get_provider_info

PROJECT = Path(__file__).resolve().parents[3]
INFO = get_provider_info()
# What no DAG of a user's makes: bases, and the task of the prediction API's own DAGs.
NOT_LISTED = {"airflow_nnunet.operators.base", "airflow_nnunet.operators.waiting", "airflow_nnunet.prediction_api.operator"}


def schema(name: str) -> Any:
    return json.loads((Path(str(airflow.__file__)).parent / name).read_text())


def listed(kind: str) -> set[str]:
    return {module for entry in INFO.get(kind, []) for module in entry["python-modules"]}


@pytest.fixture(scope="module")
def classes() -> list[type]:
    """Every class that a module of the package defines."""
    # Modules that are only there to be imported by their old names warn about it.
    names = [name for _, name, _ in pkgutil.walk_packages(airflow_nnunet.__path__, "airflow_nnunet.")]
    old = {"airflow_nnunet.dag_builder", "airflow_nnunet.dataset_config", "airflow_nnunet.__main__"}
    modules = [importlib.import_module(name) for name in names if name not in old and ".project_files." not in name]
    return [item for module in modules for item in vars(module).values() if inspect.isclass(item) and item.__module__ == module.__name__]


def test_it_fits_the_schemas_that_airflow_has_for_providers() -> None:
    jsonschema.validate(INFO, schema("provider_info.schema.json"))
    # The one of Airflow's own provider.yaml is stricter; these two fields are of its releases alone.
    jsonschema.validate({**INFO, "state": "ready", "source-date-epoch": 0}, schema("provider.yaml.schema.json"))


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("operators", BaseOperator),
        ("sensors", BaseSensorOperator),
        ("hooks", BaseHook),
        ("triggers", BaseTrigger),
        ("bundles", BaseDagBundle),
    ],
)
def test_the_modules_of_each_kind_are_exactly_those_that_have_one(kind: str, base: type, classes: list[type]) -> None:
    found = {item.__module__ for item in classes if issubclass(item, base)} - NOT_LISTED
    if kind == "operators":
        found -= listed("sensors")
    assert listed(kind) == found


def test_there_are_no_notifications_to_list(classes: list[type]) -> None:
    assert "notifications" not in INFO
    assert [item for item in classes if issubclass(item, BaseNotifier)] == []


def test_every_path_leads_to_something() -> None:
    paths = [kind["hook-class-name"] for kind in INFO["connection-types"]] + [item["plugin-class"] for item in INFO["plugins"]]
    for path in [*paths, *INFO["extra-links"], *INFO["cli"]]:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    integrations = {item["integration-name"] for item in INFO["integrations"]}
    for kind in ("operators", "sensors", "hooks", "triggers", "bundles"):
        assert {entry["integration-name"] for entry in INFO[kind]} <= integrations
    guides = [guide for item in INFO["integrations"] for guide in item["how-to-guide"]]
    assert [guide for guide in guides if not (PROJECT / guide.removeprefix("/")).is_file()] == []


def test_the_scheme_of_assets_leaves_their_addresses_as_they_are() -> None:
    asset = dataset_asset("Dataset004_Hippocampus")
    assert asset.uri == "nnunet://dataset/Dataset004_Hippocampus"
    assert INFO["asset-uris"] == [{"schemes": [asset.uri.partition(":")[0]], "handler": None}]
