"""Which series of which study become a case, for models of several channels."""

from __future__ import annotations

from pathlib import Path

import nibabel  # noqa: TID253  the rule is for what Airflow imports
import numpy as np
import pydicom
import pytest

from nnunet_jobs.context import StepContext
from nnunet_jobs.contract.workspace import Workspace
from nnunet_jobs.dataset.dicom_mark import holds_dicom
from nnunet_jobs.prediction.studies import find_studies, series_rules
from support.dicom_labels import write_series
from support.prediction import job_dir

CHANNELS = {"0": "T1", "1": "T2"}
RULES = {"T2": {"description": "t2"}, "T1": {"description": "t1"}}


@pytest.fixture
def context(workspace: Workspace) -> StepContext:
    return StepContext(workspace=workspace, job=job_dir(workspace), cpus=2)


def test_channels_come_in_the_models_order_and_lie_on_one_grid(context: StepContext, tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", seed="a", study="1", SeriesDescription="t2 tse")
    first = write_series(tmp_path / "in" / "b", seed="b", study="1", SeriesDescription="t1 mprage")
    write_series(tmp_path / "in" / "c", seed="c", study="1", SeriesDescription="scout")
    write_series(tmp_path / "in" / "d", seed="d", study="2", SeriesDescription="t1")
    write_series(tmp_path / "in" / "e", seed="e", study="3", SeriesDescription="t1")
    write_series(tmp_path / "in" / "f", seed="f", study="3", SeriesDescription="t2", spacing=(0.8, 0.9, 2.0))
    write_series(tmp_path / "in" / "g", seed="g", study="4", SeriesDescription="thorax")
    (tmp_path / "in" / "scan_0000.nii.gz").write_bytes(b"an image among DICOM studies")
    images = tmp_path / "images"
    images.mkdir()
    found = find_studies(tmp_path / "in", rules=series_rules(RULES, CHANNELS), dataset="Dataset001_A", images=images, context=context)
    [case] = found.by_case
    assert [series.description for series in found.by_case[case].channels] == ["t1 mprage", "t2 tse"]
    problems = sorted(str(item.problem) for item in found.incoming.cases if item.problem)
    assert [problem.split(";")[0] for problem in problems] == [
        "affine_mismatch: its channels lie on different grids",
        "dicom_series_missing: channel 'T2': none of the study's 1 image series matches (MR, 6 slices, 12 x 10, SeriesNumber 3, "
        "SliceThickness 2.5)",
    ]
    left_out = {item.name.split()[0]: (item.name, item.reason) for item in found.incoming.not_predicted}
    assert left_out.keys() == {"1", "study", "3"}
    assert left_out["1"][1].startswith("are no DICOM files, in a folder of DICOM studies")
    assert left_out["study"][1] == "has no series that the rules of 'series' choose"
    [ready] = found.convert([item for item in found.incoming.cases if item.case == case], context)
    assert [path.name for path in ready.images] == [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"]
    slices = np.stack([pydicom.dcmread(path).pixel_array.T for path in first], axis=-1)
    np.testing.assert_array_equal(np.asarray(nibabel.load(ready.images[0]).dataobj), slices)


def test_a_folder_is_known_for_dicom_by_its_files_and_not_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "case.dcm").write_text("no DICOM")
    assert not holds_dicom(tmp_path)
    [path, *_] = write_series(tmp_path / "b", shape=(4, 4, 1))
    path.rename(path.with_name("IM0001"))
    assert holds_dicom(tmp_path)
