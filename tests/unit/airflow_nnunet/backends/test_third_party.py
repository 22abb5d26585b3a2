"""Backends of other distributions: real ones, installed by pip's rules into a folder of their own."""

from __future__ import annotations

import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_nnunet.backends import FakeBackend, Watch, get_backend
from airflow_nnunet.doctor.backend import examine_backend
from airflow_nnunet.jobs.trigger import JobTrigger
from airflow_nnunet.settings.config import NnunetConfig
from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace
from support.installed import uv

CODE = """
    from airflow_nnunet import Backend
    from airflow_nnunet.backends import FakeBackend

    class ClinicBackend(FakeBackend):
        name = "clinic"
        runs_here = False

        def __init__(self, *, partition="gpu"):
            super().__init__()
            self.partition = partition

    class Incomplete(Backend):
        name = "incomplete"
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with these entry points; Airflow's next start is that the earlier search is forgotten."""
    target = tmp_path / "site"
    target.mkdir()
    monkeypatch.syspath_prepend(target)

    def install(name: str = "nnunet-clinic", **points: str) -> None:
        module = name.replace("-", "_")
        info = f"{module}-1.2.dist-info"
        files = {
            f"{module}.py": textwrap.dedent(CODE),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "[airflow_nnunet.backends]\n" + "".join(f"{key} = {value}\n" for key, value in points.items()),
        }
        wheel = tmp_path / f"{module}-1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
            archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
        uv("pip", "install", "--quiet", "--offline", "--no-deps", "--python", sys.executable, "--target", target, wheel)
        third_party.found.cache_clear()

    yield install
    third_party.found.cache_clear()
    for module in [module for module in sys.modules if module.startswith("nnunet_clinic")]:
        del sys.modules[module]


def test_a_backend_of_another_package_is_found_runs_a_job_and_is_listed_by_the_doctor(install: Install, workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="backend='clinic': must be one of docker, fake, kubernetes, local"):
        get_backend("clinic")
    install(clinic="nnunet_clinic:ClinicBackend")
    backend = get_backend("clinic", partition="night")
    assert isinstance(backend, FakeBackend)
    assert (type(backend).__name__, vars(backend)["partition"]) == ("ClinicBackend", "night")
    spec = JobSpec(job_id="clinic-1", step="preprocess", params={"datasets": [4]}, workspace=workspace)
    assert backend.status(backend.submit(spec), Watch()).unwrap()["dataset"].startswith("Dataset004")
    with pytest.raises(ConfigError, match=r"backend='clinic': .*'nodes'; check backend_options"):
        get_backend("clinic", nodes=2)
    with pytest.raises(ConfigError, match="backend='slurm': must be one of clinic, docker, fake, kubernetes, local"):
        get_backend("slurm")

    config = NnunetConfig(workspace=workspace, backend="clinic", backend_options={"partition": "day"})
    assert vars(config.make_backend())["partition"] == "day"
    (finding,) = examine_backend(config)
    assert str(finding) == "ok    installed backend: clinic, nnunet_clinic:ClinicBackend of nnunet-clinic 1.2"
    _, arguments = JobTrigger(job="/jobs/a", backend=config.backend, backend_options=config.backend_options).serialize()
    assert (arguments["backend"], arguments["backend_options"]) == ("clinic", {"partition": "day"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("local", "nnunet_clinic:ClinicBackend", "of airflow-provider-nnunet, and nnunet-clinic 1.2 has one of that name too; uninstall"),
        ("lost", "nnunet_clinic.gone:X", r"gone:X of nnunet-clinic 1.2 cannot be loaded \(ModuleNotFoundError: .*repair or uninstall"),
        ("none", "nnunet_clinic:Nothing", r"cannot be loaded \(AttributeError: .*repair or uninstall that package"),
        ("incomplete", "nnunet_clinic:Incomplete", "is not a complete class derived from airflow_nnunet.Backend; correct"),
        ("module", "nnunet_clinic", "is not a complete class derived from airflow_nnunet.Backend; correct"),
        ("night", "nnunet_clinic:ClinicBackend", "has the name 'clinic'; give the entry point and the attribute name of its class"),
    ],
)
def test_one_that_cannot_be_used_is_named_with_the_fix(name: str, value: str, message: str, install: Install, workspace: Workspace) -> None:
    install(**{name: value})
    with pytest.raises(ConfigError, match=f"^backend='{name}': .*{message}"):
        get_backend(name)
    findings = list(examine_backend(NnunetConfig(workspace=workspace, backend="fake")))
    assert [(finding.ok, finding.blocks) for finding in findings] == [(False, False)], "another backend is chosen, which works"
    assert findings[0].text.startswith(f"backend='{name}': ")
    assert [finding.blocks for finding in examine_backend(NnunetConfig(workspace=workspace, backend=name))] == [False, True]


def test_two_packages_cannot_have_the_same_name(install: Install) -> None:
    install(clinic="nnunet_clinic:ClinicBackend")
    install("nnunet-clinic2", clinic="nnunet_clinic2:ClinicBackend")
    with pytest.raises(ConfigError, match=r"nnunet-clinic 1\.2 and nnunet-clinic2 1\.2 have a backend of this name; uninstall all of them"):
        get_backend("clinic")
    assert get_backend("fake").name == "fake"
