"""The table and the contact sheet of a prediction folder: exact, harmless whatever cases are called, and of bounded size."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devtools.testbed.serving import make_image, make_workspace
from devtools.testbed.stages import DATASET
from nnunet_jobs.contract.storage.files import read_json
from nnunet_jobs.contract.storage.workspace import Workspace
from nnunet_jobs.prediction.contact_sheet import write_sheet
from nnunet_jobs.prediction.preview import Preview
from nnunet_jobs.prediction.tables import write_table
from nnunet_jobs.prediction.withdraw import predictions_of, remove
from nnunet_jobs.report.picture import case_picture
from support.batches import predict

FLAG = {"code": "volume", "message": "liver is unusually small: 3 ml", "value": 3.0, "expected": [9.0, 20.0]}
SPACING = {"sitk_stuff": {"spacing": (0.5, 0.5, 2.0), "direction": np.eye(3).ravel()}, "spacing": [2.0, 0.5, 0.5]}


def summary(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    labels = {"background": 0, "liver": 1, "=lesion": 2}
    common = {"dataset": "Dataset003_Liver", "model": "m1", "not_judged": {"spacing": "not known"}, "dice": None, "labels": labels}
    return {**common, "cases": cases}


def entry(**fields: Any) -> dict[str, Any]:
    return {"status": "predicted", "volumes_ml": {"liver": 12.5, "=lesion": 0.25}, "flags": [], "seconds": 1.5, "model": "m1", **fields}


def picture(size: int = 40) -> dict[str, Any]:
    segmentation = np.zeros((6, size, size), np.uint8)
    segmentation[3, 5:20, 5:30] = 1
    image = np.random.default_rng(0).normal(size=(1, 6, size, size)).astype(np.float32)
    made = Preview.of(image).picture(segmentation, SPACING)
    assert made is not None
    return made


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_table_has_a_line_a_case_and_nothing_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    hostile = "=HYPERLINK(A1)"
    cases = {
        hostile: entry(flags=[FLAG, FLAG]),
        "b, c": entry(status="failed", reason='@SUM("x")\nsecond line', volumes_ml=None, flags=None),
        "d": entry(dice={"liver": 0.5, "=lesion": None}),
    }
    with open(write_table(tmp_path, summary(cases)), newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["case"] for line in lines] == [f"'{hostile}", "b, c", "d"]
    assert [line["status"] for line in lines] == ["predicted", "failed", "predicted"]
    assert lines[0]["flags"] == "volume"
    assert lines[1]["reason"] == '\'@SUM("x")\nsecond line'
    assert [line["liver ml"] for line in lines] == ["12.5", "", "12.5"]
    assert lines[2]["liver dice"] == "0.5"
    assert "'=lesion ml" in lines[0]


def test_the_sheet_is_one_harmless_page(tmp_path: Path) -> None:
    hostile = '<img src=x onerror="alert(1)">'
    (tmp_path / ".pictures").mkdir()
    (tmp_path / ".pictures" / "a.json").write_text(json.dumps(picture()))
    (tmp_path / ".pictures" / "c.json").write_text('{"mime": "image/p')  # a killed job's
    cases = {"a": entry(flags=[FLAG]), "b": entry(status="failed", reason=hostile), "c": entry(), hostile: entry()}
    page = write_sheet(tmp_path, summary(cases), tmp_path / ".pictures").read_text()
    tags = _Tags()
    tags.feed(page)
    assert not {tag for tag, _ in tags.found} & {"script", "img", "iframe", "object", "link", "form"}
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    policy = next(attributes["content"] for _, attributes in tags.found if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert page.count("<figure>") == 3
    assert page.count("data:image/png;base64,") == 1
    assert "liver is unusually small: 3 ml" in page
    assert "1 failed · 1 to look at" in page
    assert "12.50 ml" in page


def test_a_thousand_cases_make_a_page_of_bounded_size_with_what_needs_a_look_first(tmp_path: Path) -> None:
    (tmp_path / ".pictures").mkdir()
    data = json.dumps({**picture(), "data": "A" * 12_000})
    cases = {f"c{number:04d}": entry(flags=[FLAG] if number >= 990 else []) for number in range(1000)}
    for case in cases:
        (tmp_path / ".pictures" / f"{case}.json").write_text(data)
    page = write_sheet(tmp_path, summary(cases), tmp_path / ".pictures").read_text()
    shown = re.findall(r"<figcaption><b>(c\d+)</b>", page)
    assert shown[:10] == [f"c{number:04d}" for number in range(990, 1000)]
    assert 100 < len(shown) <= 240
    assert len(page) < 4_000_000
    assert f"{len(shown)} of 1,000 cases" in page


def test_the_picture_lies_as_radiologists_look_at_it() -> None:
    made = picture()
    assert (made["view"], made["slice"], made["pixels"]) == ("axial", 3, [40, 40])
    assert list(made["contours"]) == ["1"]
    assert made["size_mm"] == [20.0, 20.0]
    coarse = picture(size=400)
    assert coarse["size_mm"] == [pytest.approx(200, abs=2)] * 2


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_it_is_the_picture_that_registration_would_make_of_the_same_files(tmp_path: Path, reader: str, axes: tuple[int, ...]) -> None:
    import nibabel as nib
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    image = np.random.default_rng(0).normal(size=(30, 24, 10)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[3:9, 2:8, 4] = 1
    label[20:24, 18:22, 4] = 2
    affine = np.diag([1.0 * axes[0], 1.5 * axes[1], 4.0 * axes[2], 1.0])
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "b.nii.gz")
    io = recursive_find_reader_writer_by_name(reader)()
    voxels, properties = io.read_images([str(tmp_path / "a.nii.gz")])
    segmentation, _ = io.read_seg(str(tmp_path / "b.nii.gz"))
    made = Preview.of(voxels).picture(segmentation[0], properties)
    expected = case_picture([image], label, [1.0, 1.5, 4.0], affine=affine)
    assert made is not None
    assert expected is not None
    shown = ("view", "size_mm", "pixels", "mime", "data", "contours")
    assert {name: made[name] for name in shown} == {name: expected[name] for name in shown}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_step_writes_both_and_a_withdrawal_takes_a_case_out_of_them(tmp_path: Path) -> None:
    home: Workspace = make_workspace(tmp_path / "work")
    folder = tmp_path / "incoming"
    folder.mkdir()
    for number, case in enumerate(("kept", "gone", "broken")):
        make_image(folder / f"{case}_0000.nii.gz", seed=number)
    broken = folder / "broken_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:5000])
    for part in (0, 1):
        result = predict(home, folder, "out", part=part, parts=2)
    output = Path(result["output"])
    with open(output / "predictions.csv", newline="") as file:
        lines = {line["case"]: line for line in csv.DictReader(file)}
    summarised = read_json(output / "predictions.json")["cases"]
    assert {case: line["status"] for case, line in lines.items()} == {"broken": "failed", "gone": "predicted", "kept": "predicted"}
    assert "truncated" in lines["broken"]["reason"]
    assert float(lines["kept"]["head ml"]) == summarised["kept"]["volumes_ml"]["head"]
    page = (output / "contact-sheet.html").read_text()
    assert page.count("<figure>") == page.count("data:image/") == 2
    (withdrawn,) = predictions_of(home, DATASET, ["gone"])
    remove(withdrawn)
    left = [path.name for path in output.rglob("*") if "gone" in path.name]
    assert left == []
    kept = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    assert any(b'"kept"' in data for data in kept)
    assert not any(b"gone" in data for data in kept)
    plain = Path(predict(home, folder, "plain", contact_sheet=False)["output"])
    assert not (plain / "contact-sheet.html").exists()
    assert not (plain / ".cases" / ".pictures").exists()
    assert (plain / "predictions.csv").exists()
