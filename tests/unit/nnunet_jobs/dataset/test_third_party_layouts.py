"""Layouts of other distributions: a module and its entry point in one folder on the path, as an installed package has them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devtools.testbed.data import LABELS, image_array, label_array, register_dataset, write_nifti
from nnunet_jobs.contract import third_party
from nnunet_jobs.contract.failure import ConfigError, DataError
from nnunet_jobs.contract.steps.params import LAYOUTS, RegisterParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.dataset import layouts

CODE = """
    from nnunet_jobs.dataset.layouts.base import Layout, SourceCase

    def _recognise(params, root, description):
        return any(root.glob("*/scan.nii.gz"))

    def _read(params, source, description):
        for folder in sorted(path for path in source.root.iterdir() if path.is_dir()):
            label = folder / "mask.nii.gz"
            source.add(SourceCase(case=folder.name, images=(folder / "scan.nii.gz",), label=label if label.exists() else None))

    LAYOUT = Layout(name="per_case", expects="a folder for each case with scan.nii.gz", recognise=_recognise, read=_read)
    OTHER = "no layout"
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with these entry points on the path; a job's next start is that the earlier search is forgotten."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str = "nnunet_per_case", **points: str) -> None:
        (site / f"{name}.py").write_text(textwrap.dedent(CODE))
        info = site / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{key} = {value}\n" for key, value in points.items()]
        (info / "entry_points.txt").write_text("".join(["[nnunet_jobs.layouts]\n", *lines]))
        third_party.found.cache_clear()

    yield install
    third_party.found.cache_clear()
    sys.modules.pop("nnunet_per_case", None)


def source(folder: Path, *, labelled: bool = True) -> Path:
    for seed, case in enumerate(("a", "b", "c")):
        (folder / case).mkdir(parents=True)
        write_nifti(folder / case / "scan.nii.gz", image_array(seed))
        if labelled:
            write_nifti(folder / case / "mask.nii.gz", label_array())
    return folder


WANTED = {"channel_names": {"0": "T1"}, "label_names": LABELS, "holdout_fraction": 0.0}


@pytest.mark.parametrize("layout", ["per_case", "auto"])
def test_a_layout_of_another_package_is_registered_and_the_second_time_nothing_is_new(
    layout: str, install: Install, tmp_path: Path, workspace: Workspace
) -> None:
    install(per_case="nnunet_per_case:LAYOUT")
    folder = source(tmp_path / "source")
    result = register_dataset(workspace, folder, layout=layout, **WANTED)
    assert (result["train"], result["already_done"]) == (3, False)
    assert sorted(path.name for path in Path(result["path"], "labelsTr").iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert register_dataset(workspace, folder, layout=layout, **WANTED)["already_done"]


def test_its_cases_are_checked_like_all_others(install: Install, tmp_path: Path, workspace: Workspace) -> None:
    install(per_case="nnunet_per_case:LAYOUT")
    with pytest.raises(DataError) as raised:
        register_dataset(workspace, source(tmp_path / "source", labelled=False), layout="per_case", **WANTED)
    assert {(fault.code, fault.case) for fault in raised.value.faults} == {("label_missing", case) for case in "abc"}


def test_a_dataset_file_and_the_command_know_it(install: Install, tmp_path: Path) -> None:
    from airflow_nnunet.pipelines.dag_builder import check_datasets

    folder = source(tmp_path / "source")
    files = tmp_path / "files"
    files.mkdir()
    (files / "cases.yaml").write_text(f"dataset: {{id: 4, name: Cases, source: {folder}, layout: per_case}}\n")
    with pytest.raises(Exception, match=r"dataset.layout='per_case': must be auto, nnunet, .* folders or dicom"):
        check_datasets(files)
    install(per_case="nnunet_per_case:LAYOUT")
    check_datasets(files)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": LABELS, "file_ending": ".nii.gz"}))
    command = [sys.executable, "-m", "nnunet_jobs", "validate", folder, "--layout", "per_case"]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False)
    assert "usable: 3 cases, layout per_case" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bids", "nnunet_per_case:LAYOUT", "is a layout of airflow-provider-nnunet, and nnunet_per_case 1.2 has one of that name too"),
        ("gone", "nnunet_gone:LAYOUT", r"nnunet_gone:LAYOUT of nnunet_per_case 1.2 cannot be loaded \(ModuleNotFoundError: .*repair"),
        ("other", "nnunet_per_case:OTHER", "is not a nnunet_jobs.dataset.layouts.base.Layout; correct the entry point"),
        ("another", "nnunet_per_case:LAYOUT", "has the name 'per_case'; give the entry point and its layout the same name"),
    ],
)
def test_one_that_cannot_be_used_is_named_with_the_fix(name: str, value: str, message: str, install: Install) -> None:
    install(**{name: value})
    with pytest.raises(ConfigError, match=f"^layout='{name}': .*{message}"):
        layouts.get_layout(name)


def test_a_layout_that_is_not_there_is_refused_with_those_that_are(install: Install) -> None:
    install(per_case="nnunet_per_case:LAYOUT")
    with pytest.raises(ConfigError, match=r"layout='per_cases': must be auto, nnunet, .* dicom or per_case"):
        RegisterParams(dataset_id=4, name="Cases", source="/data", layout="per_cases")


def test_the_contract_names_the_layouts_that_there_are() -> None:
    assert set(LAYOUTS) == {"auto", *layouts.LAYOUTS}
