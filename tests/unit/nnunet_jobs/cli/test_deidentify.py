"""Images for others: canaries in every place are gone, references hold, pixels stay, and what cannot be judged stays at home."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from nnunet_jobs.__main__ import main
from nnunet_jobs.dicom.export import export
from nnunet_jobs.dicom.geometry import grid_of
from nnunet_jobs.dicom.identity import Identity
from support.dicom import multiframe, save, scanned, slices, uid, voxels

CANARY = "KANARIENVOGEL"
WORDS = (CANARY, "4711081599", "19430102", "9988776655", "20240102")


def marked(datasets: list[Dataset]) -> list[Dataset]:
    for ds in datasets:
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = f"{CANARY}^Hansi", "4711081599", "19430102"
        ds.AccessionNumber, ds.OtherPatientIDs, ds.StudyDescription = "9988776655", f"{CANARY}-2", f"{CANARY} study"
        ds.InstitutionName, ds.ReferringPhysicianName, ds.ImageComments = f"{CANARY} hospital", f"{CANARY}^Doctor", f"{CANARY} comment"
        ds.AcquisitionDateTime = "20240102101112"
        ds.private_block(0x0009, f"{CANARY} CREATOR", create=True).add_new(0x01, "LO", f"{CANARY} private")
        reference, request = Dataset(), Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = ds.SOPClassUID, datasets[0].SOPInstanceUID
        reference.private_block(0x0011, f"{CANARY} CREATOR", create=True).add_new(0x01, "LO", f"{CANARY} private")
        request.RequestedProcedureDescription, request.RequestedProcedureID = f"{CANARY} procedure", CANARY[:12]
        operator = Dataset()
        operator.PersonIdentificationCodeSequence = [request]
        operator.InstitutionName = f"{CANARY} hospital"
        reference.PerformedProtocolCodeSequence = [operator]
        ds.SourceImageSequence, ds.RequestAttributesSequence = [reference], [request]
        ds.add_new(0x60003000, "OW", CANARY.encode() + b" ")
        ds.add_new(0x00189FFE, "LO", f"{CANARY} in an element that the dictionary does not know")
        ds.preamble = (CANARY.encode() * 10)[:128]
        ds.file_meta.SourceApplicationEntityTitle = CANARY
    return datasets


def everything(root: Path) -> bytes:
    return b"".join(
        os.fsencode(os.path.join(folder, name)) + (Path(folder) / name).read_bytes() for folder, _, names in os.walk(root) for name in names
    )


def test_fault_55_nothing_of_the_patient_is_exported(tmp_path: Path) -> None:
    source = save(tmp_path / "in" / CANARY, marked(slices(study="s0")), name=f"{CANARY}_{{}}".format)
    save(tmp_path / "in" / "b", marked([multiframe(slices(study="s1", series="mf"))]))
    (tmp_path / "in" / f"{CANARY}.txt").write_text("notes")
    assert all(word.encode() in everything(source) for word in WORDS)
    done = export(tmp_path / "in", tmp_path / "out", tmp_path / "private", threads=2)
    assert (done.written, done.other, done.refused) == (8, 1, {})
    written = everything(tmp_path / "out")
    old = [uid("s0"), uid("s0", "series"), uid("s0", "frame"), uid("s0", "series", 0), uid("s1")]
    assert [word for word in (*WORDS, CANARY.lower(), *old) if word.encode() in written] == []


def test_the_images_are_still_whole_series_that_refer_to_each_other(tmp_path: Path) -> None:
    save(tmp_path / "in", marked(slices(study="s0")))
    export(tmp_path / "in", tmp_path / "out", tmp_path / "private", threads=2)
    [series] = scanned(tmp_path / "out").series
    [before] = scanned(tmp_path / "in").series
    np.testing.assert_array_equal(grid_of(series).affine, grid_of(before).affine)
    identity = Identity(tmp_path / "private")
    assert series.patient == identity.group("4711081599", "")
    datasets = [pydicom.dcmread(instance.path) for instance in series.instances]
    for k, ds in enumerate(datasets):
        np.testing.assert_array_equal(ds.pixel_array.T, voxels()[:, :, k])
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == datasets[0].SOPInstanceUID
        assert (ds.PatientIdentityRemoved, ds.DeidentificationMethodCodeSequence[0].CodeValue) == ("YES", "113100")
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert series.instances[0].path.parts[-4:-1][:2] == (series.patient, identity.case(uid("s0")))


def test_a_second_export_gives_the_same_uids_and_another_key_others(tmp_path: Path) -> None:
    save(tmp_path / "in", marked(slices(study="s0")[:2]))
    names = []
    for out, private in (("a", "p"), ("b", "p"), ("c", "q")):
        export(tmp_path / "in", tmp_path / out, tmp_path / private)
        names.append({path.name for path in (tmp_path / out).rglob("*.dcm")})
    assert names[0] == names[1]
    assert not names[0] & names[2]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned into its pixels"),
        ({"Modality": "US"}, "does not say BurnedInAnnotation NO"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "does not say BurnedInAnnotation NO"),
        ({"PixelData": None}, "is not an image"),
        ({"Manufacturer": f"Scanner of {CANARY}"}, "its Manufacturer still has a name"),
    ],
)
def test_what_cannot_be_judged_stays(tmp_path: Path, values: dict[str, str | None], says: str, caplog: pytest.LogCaptureFixture) -> None:
    made = marked(slices(study="s0")[:2])
    for keyword, value in values.items():
        if value is None:
            delattr(made[1], keyword)
        else:
            setattr(made[1], keyword, value)
    save(tmp_path / "in", made, name=f"{CANARY}{{}}.dcm".format)
    with caplog.at_level("INFO"):
        assert main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out"), "--private", str(tmp_path / "private")]) == 3
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1
    assert says in caplog.text
    assert "file 2 " in caplog.text
    assert CANARY not in caplog.text
    assert CANARY in (tmp_path / "private" / "deidentified.files.json").read_text()


def test_folders_that_would_mix_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in", slices()[:1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    monkeypatch.delenv("nnUNet_raw", raising=False)
    inside, nothing = str(tmp_path / "in"), str(tmp_path / "nothing")
    for arguments in ([inside, str(tmp_path / "full")], [inside, f"{inside}/out"], [nothing, str(tmp_path / "out")]):
        assert main(["deidentify", *arguments, "--private", str(tmp_path / "private")]) == 3
    assert main(["deidentify", inside, str(tmp_path / "out")]) == 3
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert main(["deidentify", inside, str(tmp_path / "out")]) == 0
    assert (tmp_path / "raw" / ".private" / "site.key").exists()


def test_the_real_series(test_data: Path, tmp_path: Path) -> None:
    done = export(test_data / "dicom", tmp_path / "out", tmp_path / "private", threads=2)
    assert (done.written, done.refused) == (22 + 32 + 35, {})
    written = everything(tmp_path / "out")
    for word in (b"Avasarala", b"PGBM-00", b"8701449723783444", b"1.3.6.1.4.1.14519", b"MR RCBV", b"GEMS_IDEN"):
        assert word not in written, word
