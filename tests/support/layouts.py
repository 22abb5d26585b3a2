"""Small datasets in the layouts that need more than a line to make: nnU-Net version 1, BIDS, a CSV table; and archives of them."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from devtools.testbed.data import LABELS, image_array, label_array, write_nifti


def nnunet_v1(root: Path, cases: Sequence[str], *, channels: int = 1, test: Sequence[str] = ()) -> Path:
    """``TaskXXX_Name``: the list names ``a.nii.gz``, on disk there is ``a_0000.nii.gz``."""
    for number, case in enumerate([*cases, *test]):
        for channel in range(channels):
            folder = "imagesTr" if case in cases else "imagesTs"
            write_nifti(root / folder / f"{case}_{channel:04d}.nii.gz", image_array(10 * number + channel))
        if case in cases:
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", label_array())
    description = {
        "name": "Small",
        "modality": {str(number): f"C{number}" for number in range(channels)},
        "labels": {str(value): name for name, value in LABELS.items()},
        "numTraining": len(cases),
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [f"./imagesTs/{case}.nii.gz" for case in test],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def bids(
    root: Path,
    subjects: Sequence[str],
    *,
    sessions: Sequence[str] = (),
    images: Sequence[str] = ("T1w",),
    label: str = "dseg",
    pipeline: str = "manual",
    unlabelled: Sequence[str] = (),
    table: bool = True,
) -> Path:
    """Raw images and, for all but ``unlabelled`` subjects, labels in a pipeline's derivatives."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Small", "BIDSVersion": "1.9.0"}))
    for number, subject in enumerate([*subjects, *unlabelled]):
        for session in sessions or ("",):
            folder = Path(f"sub-{subject}", *([f"ses-{session}"] if session else []), "anat")
            stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
            for channel, image in enumerate(images):
                write_nifti(root / folder / f"{stem}_{image}.nii.gz", image_array(100 * number + 10 * len(session) + channel))
                (root / folder / f"{stem}_{image}.json").write_text("{}")
            if subject not in unlabelled:
                values = (0, 1) if label.endswith("mask") else (0, 1, 2)
                write_nifti(root / "derivatives" / pipeline / folder / f"{stem}_{label}.nii.gz", label_array(values))
    if table:
        (root / "derivatives" / pipeline / "dseg.tsv").write_text("index\tname\tabbreviation\n1\tfront\tF\n2\tback\tB\n")
    return root


def table(root: Path, rows: Sequence[Mapping[str, str]], *, name: str = "cases.csv", delimiter: str = ",") -> Path:
    """A CSV table with a column for each key of the first row."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    (root / name).write_text("\n".join(delimiter.join(line) for line in lines) + "\n")
    return root


def scans(root: Path, rows: Sequence[Mapping[str, str]], *, images: Sequence[str] = ("image",)) -> Path:
    """The files that the rows of a table name, and the table."""
    for number, row in enumerate(rows):
        for channel, column in enumerate(images):
            write_nifti(root / row[column], image_array(10 * number + channel))
        if row["label"]:
            write_nifti(root / row["label"], label_array())
    return table(root, rows)


def pack(archive: Path, folder: Path, *, top: str = "") -> Path:
    """Pack a folder's content, below the folder ``top`` of the archive, as the archive's ending says."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in paths:
                packed.write(path, str(Path(top) / path.relative_to(folder)))
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as packed:
            for path in paths:
                packed.add(path, str(Path(top) / path.relative_to(folder)))
    return archive
