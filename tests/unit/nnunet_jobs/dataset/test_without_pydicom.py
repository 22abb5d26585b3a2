"""NIfTI datasets need no DICOM library: what the extra ``dicom`` brings is asked for when a source holds DICOM, and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from devtools.testbed.data import decathlon
from support.dicom import save, slices
from support.validating import environment

_BLOCKED = """
import sys
for name in ("pydicom", "highdicom", "dicomweb_client"):
    sys.modules[name] = None
from pathlib import Path
from nnunet_jobs.contract.failure import ConfigError
from nnunet_jobs.contract.steps.params import PredictParams
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.steps import predict, register
from devtools.testbed.data import context, register_dataset
root = Path(sys.argv[1])
workspace = Workspace.below(root / "work", input_roots=(str(root),))
result = register_dataset(workspace, root / "nifti", holdout_fraction=0.0)
print("registered", result["train"])
tables = {"channel_names": {"0": "CT"}, "label_names": {"background": 0, "tumour": 1}}
for layout in ("auto", "dicom"):
    try:
        register_dataset(workspace, root / "tree", dataset_id=5, layout=layout, **tables)
    except ConfigError as error:
        print(layout, error)
params = PredictParams(dataset="4", model="m", cases=str(root / "tree"), output=str(root / "work" / "predictions" / "a"))
try:
    predict._studies(Path(params.cases), params, context(workspace), result["dataset"], {"file_ending": ".nii.gz"}, images=root / "images")
except ConfigError as error:
    print("predict", error)
params = PredictParams(dataset="4", model="m", cases=str(root / "nifti" / "imagesTr"), output=str(root / "work" / "predictions" / "a"))
folder = Path(params.cases)
print("nifti", predict._studies(folder, params, context(workspace), result["dataset"], {"file_ending": ".nii.gz"}, images=root / "images"))
"""


def test_nifti_needs_no_dicom_library_and_dicom_names_the_fix(tmp_path: Path) -> None:
    decathlon(tmp_path / "nifti", ["a", "b"])
    save(tmp_path / "tree" / "study", slices())
    command = [sys.executable, "-W", "error", "-c", _BLOCKED, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    fix = "reading DICOM needs pydicom; install airflow-provider-nnunet[dicom]"
    registered, auto, dicom, predict, nifti = done.stdout.splitlines()
    assert (registered, nifti) == ("registered 2", "nifti None")
    assert auto.startswith("auto ")
    assert dicom.startswith("dicom ")
    assert predict.startswith("predict cases=")
    assert [line.endswith(fix) for line in (auto, dicom, predict)] == [True] * 3
