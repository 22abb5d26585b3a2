"""What CONTRIBUTING.md tells a stranger to write: its layout and its backend, each in a folder of its own, register a dataset."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_nnunet import get_backend
from airflow_nnunet.backends import Watch
from devtools.testbed.data import LABELS, image_array, label_array, write_nifti
from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.job.spec import JobSpec
from nnunet_jobs.contract.storage.workspace import Workspace
from support.jobs import no_runner_left, wait_for
from support.snippets import PROJECT, Snippet, snippets


def shown(language: str) -> list[Snippet]:
    return [snippet for snippet in snippets(PROJECT / "CONTRIBUTING.md") if snippet.language == language]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both packages on the path, of this process and of those that it starts, with what their ``pyproject.toml`` declares."""
    site = tmp_path / "site"
    for code, project in zip(shown("python"), shown("toml"), strict=True):
        declared = tomllib.loads(project.text)["project"]
        module = declared["name"].replace("-", "_")
        info = site / f"{module}-{declared['version']}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code.text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n")
        lines = [f"[{group}]\n{name} = {value}\n" for group, points in declared["entry-points"].items() for name, value in points.items()]
        (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{PROJECT / 'plugins'}")
    third_party.found.cache_clear()
    yield
    third_party.found.cache_clear()
    for module in [module for module in sys.modules if module in ("nnunet_per_case", "nnunet_remote")]:
        del sys.modules[module]


def test_the_backend_that_is_shown_registers_a_source_of_the_layout_that_is_shown(
    packages: None, tmp_path: Path, workspace: Workspace
) -> None:
    source = tmp_path / "source"
    for seed, case in enumerate(("a", "b", "c")):
        (source / case).mkdir(parents=True)
        write_nifti(source / case / "scan.nii.gz", image_array(seed))
        if case != "c":
            write_nifti(source / case / "mask.nii.gz", label_array())
    params = {
        "dataset_id": 4,
        "name": "Cases",
        "source": str(source),
        "layout": "per_case",
        "channel_names": {"0": "CT"},
        "label_names": LABELS,
        "holdout_fraction": 0.0,
    }
    backend = get_backend("remote", command=["env"], python=sys.executable)
    with no_runner_left(workspace):
        job = backend.submit(JobSpec(job_id="register-shown", step="register", params=params, workspace=workspace))
        watch = Watch()
        status = wait_for(lambda: (seen := backend.status(job, watch)).final and seen, timeout_s=60, what=f"end of {job}")
    result = status.unwrap()
    assert (result["train"], result["test"]) == (2, 1)
