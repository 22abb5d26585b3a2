"""The image of nnU-Net jobs, built for real: what is in it, what is not, and that nobody in particular can run it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.engine import BASE
from support.images import Image, build

pytest_plugins = ["support.image_fixtures"]
pytestmark = pytest.mark.timeout(1500)  # the first of these tests waits for the build
PROJECT = Path(__file__).resolve().parents[2]
IN_CONTEXT = ("pyproject.toml", "constraints.txt", "docker", "plugins", ".dockerignore")
INSTALLED = """
import importlib.metadata, importlib.util, json
found = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
modules = {name: importlib.util.find_spec(name) is not None for name in ("airflow", "airflow_nnunet", "nnunet_jobs")}
print(json.dumps({"distributions": found, "modules": modules}))
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, set[str]]:
    """Versions that constraints.txt allows; one package may have several, for different Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (PROJECT / "constraints.txt").read_text(), re.MULTILINE):
        found.setdefault(normal(name), set()).add(version)
    return found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the image is built from, with things beside it that must never be in it."""
    folder = tmp_path_factory.mktemp("context") / "project"
    folder.mkdir()
    for name in IN_CONTEXT:
        source = PROJECT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for decoy in (
        ".venv/bin/python",
        ".git/config",
        "data/case.nii.gz",
        "airflow.cfg",
        ".demo/passwords.json",
        "docker/secrets/fernet_key",
    ):
        (folder / decoy).parent.mkdir(parents=True, exist_ok=True)
        (folder / decoy).write_text("private")
    return folder


def test_every_package_has_the_pinned_version_and_airflow_is_none_of_them(nnunet_image: Image) -> None:
    found = json.loads(nnunet_image.run("python", "-c", INSTALLED))
    installed = {normal(name): version for name, version in found["distributions"].items()}
    allowed = pins()
    assert {"nnunetv2", "torch", "pydicom", "highdicom", "uvicorn"} <= set(installed)
    assert {name: version for name, version in installed.items() if version.partition("+")[0] not in allowed.get(name, ())} == {}
    assert not [name for name in installed if "airflow" in name]
    assert found["modules"] == {"airflow": False, "airflow_nnunet": False, "nnunet_jobs": True}


def test_it_says_its_versions_has_a_user_and_asks_for_no_gpu(nnunet_image: Image) -> None:
    config = nnunet_image.inspect()["Config"]
    allowed = pins()
    labels = config["Labels"]
    assert nnunet_image.name == f"nnunet-jobs:{labels['org.opencontainers.image.version']}-cpu"
    assert {labels["airflow-provider-nnunet.nnunetv2"]} == allowed["nnunetv2"]
    assert {labels["airflow-provider-nnunet.torch"]} == allowed["torch"]
    assert labels["airflow-provider-nnunet.accelerator"] == "cpu"
    user, _, group = config["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert config["Healthcheck"]["Test"] == ["NONE"], "a job's health is its heartbeat, which the backend watches"
    variables = dict(line.split("=", 1) for line in config["Env"])
    assert "NVIDIA_VISIBLE_DEVICES" not in variables, "or every container would see every GPU"
    assert not [name for name in variables if re.search("TOKEN|PASSWORD|SECRET|INDEX|PROXY", name, re.IGNORECASE)]


def test_fault_58_it_runs_read_only_without_network_as_a_user_it_does_not_know(nnunet_image: Image) -> None:
    host = json.loads(nnunet_image.run("python", "-m", "nnunet_jobs", "probe"))
    assert host["versions"]["nnunetv2"] in pins()["nnunetv2"]
    assert host["gpus"] == []
    script = "id -u; touch /opt/nnunet/x /etc/x 2>/dev/null && echo written; nnUNetv2_train --help | head -n 1; ls -A /tmp"
    uid, usage, *left = nnunet_image.run("sh", "-c", script).splitlines()
    assert uid == "12345"
    assert usage.startswith("usage: nnUNetv2_train")
    assert "written" not in left


def test_no_layer_hides_what_a_later_one_removed(nnunet_image: Image) -> None:
    whole = nnunet_image.inspect()["Size"]
    seen = int(nnunet_image.run("du", "-sxb", "--exclude=/tmp", "/", options=("--user=0",)).split()[0])
    print(f"image {whole / 1e9:.2f} GB, built in {nnunet_image.build_s:.0f} s")
    assert whole < 1.05 * seen, f"{whole / 1e9:.2f} GB of layers for {seen / 1e9:.2f} GB of files: a cache was left in a layer"


def test_new_code_and_other_settings_reuse_the_layer_of_dependencies(nnunet_image: Image, context: Path) -> None:
    before = nnunet_image.inspect()["RootFS"]["Layers"]
    (context / "plugins" / "nnunet_jobs" / "new_module.py").write_text("CHANGED = True\n")
    with open(context / "pyproject.toml", "a") as project:
        project.write("\n[tool.unrelated]\nchanged = true\n")
    arguments = ("--accelerator", "cpu", "--base", BASE, "--tag", "changed", "--", "--network=none")
    name = build(nnunet_image.engine, "nnunet", *arguments, project=context)
    after = nnunet_image.engine.inspect(name)["RootFS"]["Layers"]
    common = next(number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
    sizes = nnunet_image.engine.docker("history", "--human=false", "--format", "{{.Size}}", name).split()
    assert len(before) - common == 2, "only the code and its bytecode are new"
    assert max(map(int, sizes[: len(sizes) // 2])) < 20e6, "what comes after the dependencies is small"


def test_the_build_sees_neither_data_nor_secrets_nor_environments(nnunet_image: Image, context: Path) -> None:
    dockerfile = context / "docker" / "Dockerfile.listing"
    dockerfile.write_text(f"FROM {BASE}\nCOPY . /context\n")
    nnunet_image.engine.docker("build", "--quiet", "--file", str(dockerfile), "--tag", "listing", str(context))
    listed = nnunet_image.engine.docker("run", "--rm", "--network=none", "listing", "find", "/context", "-type", "f").splitlines()
    names = {str(Path(line).relative_to("/context")) for line in listed}
    assert {"pyproject.toml", "constraints.txt", "docker/Dockerfile.nnunet", "plugins/nnunet_jobs/runner/runner.py"} <= names
    assert not [name for name in names if name.split("/")[0] not in IN_CONTEXT]
    assert not [name for name in names if name.startswith("docker/secrets/") or "__pycache__" in name]


def test_an_extra_that_is_not_there_stops_the_build(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    shutil.copy(PROJECT / "docker" / "requirements.py", tmp_path)
    command = [sys.executable, str(tmp_path / "requirements.py")]
    done = subprocess.run([*command, "local", "dicon"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "dicon" in done.stderr
    good = subprocess.run([*command, "local", "dicom", "serve"], capture_output=True, text=True, check=True)
    assert not [line for line in good.stdout.splitlines() if "airflow" in line]
