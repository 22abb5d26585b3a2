"""Section [nnunet] and the connection that overrides it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from airflow_nnunet.provider_info import OPTIONS, get_provider_info
from airflow_nnunet.settings.config import NnunetConfig, airflow_home
from airflow_nnunet.settings.hook import NnunetHook
from airflow_nnunet.settings.resolver import resolve_config
from nnunet_jobs.contract.failure import ConfigError
from support.airflow import environment, run


def test_the_default_is_a_folder_in_airflow_home() -> None:
    config = NnunetConfig.from_options({})
    assert config.workspace.raw == str(airflow_home() / "nnunet" / "nnUNet_raw")
    assert (config.backend, config.python, config.poll_interval, config.lost_after) == ("local", sys.executable, 2.0, 120.0)


def test_single_roots_and_lists_override_the_folder() -> None:
    config = NnunetConfig.from_options(
        {"workspace": "/data", "raw": "/archive/raw", "input_roots": "/a, /b:/c", "trainer_paths": ["/t"], "cpu_slots": "3"}
    )
    assert config.workspace.raw == "/archive/raw"
    assert config.workspace.results == "/data/nnUNet_results"
    assert config.workspace.input_roots == ("/a", "/b", "/c")
    assert config.workspace.output_roots == ("/data/predictions",)
    assert config.workspace.trainer_paths == ("/t",)
    assert config.workspace.cpu_slots == 3


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("cpu_slots", "two", "integer"),
        ("cpu_slots", "0", "1 or more"),
        ("poll_interval", "-1", "more than 0"),
        ("lost_after", "nan", "more than 0"),
        ("workspace", "relative", "absolute"),
        ("input_roots", "a,b", "absolute"),
        ("backend_options", "[1]", "JSON object"),
        ("backend_options", "{", "JSON object"),
        ("wrokspace", "/data", "unknown option"),
    ],
)
def test_a_wrong_option_is_named_with_its_mend(option: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        NnunetConfig.from_options({option: value})
    assert option in str(caught.value)


def test_an_unknown_backend_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="backend='cloud'"):
        NnunetConfig.from_options({"backend": "cloud"}).make_backend()


def test_the_section_is_read_and_a_connection_overrides_it(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__CPU_SLOTS", "5")
    extra = {"workspace": "/data/radiology", "input_roots": ["/in"]}
    monkeypatch.setenv("AIRFLOW_CONN_RADIOLOGY", json.dumps({"conn_type": "nnunet", "extra": extra}))
    assert resolve_config().workspace.raw == str(nnunet / "nnUNet_raw")
    config = resolve_config("radiology")
    assert config.workspace.raw == "/data/radiology/nnUNet_raw"
    assert config.workspace.input_roots == ("/in",)
    assert (config.workspace.cpu_slots, config.backend) == (5, "fake")
    assert NnunetHook("radiology").test_connection() == (True, "nnUNet_raw is /data/radiology/nnUNet_raw")


def test_a_connection_that_is_no_json_object_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BAD", json.dumps({"conn_type": "nnunet", "extra": {"cpu_slots": "many"}}))
    assert NnunetHook("bad").test_connection()[0] is False


def test_every_option_is_described_and_read() -> None:
    options = get_provider_info()["config"]["nnunet"]["options"]
    assert set(options) == set(OPTIONS)
    assert all(option["description"].endswith((".", ")")) and option["version_added"] for option in options.values())


def test_what_the_connections_form_left_empty_does_not_override_the_section(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__NNUNET__RAW", "/archive/raw")
    extra = {"workspace": "/data/radiology", "raw": "", "backend": None, "cpu_slots": 3, "input_roots": "/in,/other"}
    monkeypatch.setenv("AIRFLOW_CONN_RADIOLOGY", json.dumps({"conn_type": "nnunet", "extra": extra}))
    config = resolve_config("radiology")
    assert (config.backend, config.workspace.raw, config.workspace.results) == ("fake", "/archive/raw", "/data/radiology/nnUNet_results")
    assert (config.workspace.cpu_slots, config.workspace.input_roots) == (3, ("/in", "/other"))


def test_the_connections_form_is_one_that_airflow_takes_and_has_the_sections_options() -> None:
    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    (kind,) = [item for item in get_provider_info()["connection-types"] if item["connection-type"] == "nnunet"]
    fields = kind["conn-fields"]
    assert set(OPTIONS) - set(fields) == {
        "datasets", "teams", "predictor_servers", "predictions_quota", "predictions_limit", "predictions_keep_days",
        "predictions_upload_mib", "predictions_free_mib",
    }, "the site's own; a new option of a team belongs into the form"  # fmt: skip
    assert fields["cpu_slots"]["schema"]["type"] == ["integer", "null"]
    for name in fields["backend"]["schema"]["examples"]:
        NnunetConfig.from_options({"backend": name})
    for name, values in {"sharing": fields["sharing"], "task_log": fields["task_log"]}.items():
        for value in values["schema"]["enum"]:
            NnunetConfig.from_options({name: value})


def test_airflow_lists_the_defaults_that_are_real(tmp_path: Path) -> None:
    done = run(["-m", "airflow", "config", "list", "--section", "nnunet", "--show-values"], environment(tmp_path))
    listed = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    assert listed["workspace"] == str(tmp_path / "nnunet"), done.stderr[-2000:]
    assert (listed["backend"], listed["cpu_slots"]) == ("local", "1")
