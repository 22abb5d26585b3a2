"""De-identifies DICOM images by the standard's basic profile, in every sequence, with keyed UIDs, and checks the result."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue

from nnunet_jobs.dicom.identity import Identity
from nnunet_jobs.dicom.mark import named_like
from nnunet_jobs.dicom.reading import is_dicom, read_file

PROFILE = "DICOM PS3.15 E.1 Basic Profile"
_IMAGE_MODALITIES = ("CT", "MR", "PT")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_IDENTIFYING = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs", "OtherPatientNames",
                "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "MilitaryRank",
                "MedicalRecordLocator", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "ReferringPhysicianName",
                "InstitutionName", "StudyID")  # fmt: skip
_SHORTEST = 5  # characters; shorter names and numbers occur in many strings by chance
_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT", "DA", "DT", "OB", "UN")


class NotExported(Exception):
    """A file is not exported. The message is for users and does not identify the patient."""


def task(data: dict[str, Any]) -> dict[str, Any]:
    """De-identify one file in the sandbox; return ``{"written": path below out}``, ``{"refused": text}``, or neither for other files."""
    try:
        written = deidentify(Path(data["path"]), Path(data["out"]), Identity(Path(data["private"])))
    except NotExported as refused:
        return {"refused": str(refused)}
    return {"written": str(written) if written else None}


def deidentify(path: Path, out: Path, identity: Identity) -> Path | None:
    """Write a file's image without what identifies its patient, as ``<group>/<case>/<series>/<new SOPInstanceUID>.dcm``.

    The basic profile's table decides on each element, also in sequences; private elements, and those that the standard's
    dictionary does not know, are removed. UIDs become ``2.25.`` and a keyed hash, the same for the same UID in every file, so
    studies, series and references stay together. PatientID and PatientName become the patient's group id. Pixels are not touched.

    Args:
        path: Path of a DICOM file.
        out: Folder to write to.
        identity: Identity with the site's key.

    Returns:
        Path below ``out``; None for files that are not DICOM.

    Raises:
        NotExported: The file has no image, has burned-in text, is not covered by the profile, or still identifies the patient.
    """
    if not is_dicom(path):
        if named_like(path.name) and path.name.upper() != "DICOMDIR":
            raise NotExported("is named like a DICOM file but does not begin like one; copy it again, or move it away")
        return None
    dataset = read_file(path)
    _check_exportable(dataset)
    secrets = set(_secrets(dataset))
    patient = (str(dataset.get("PatientID") or "").strip(), str(dataset.get("StudyInstanceUID") or ""))
    group, case = identity.group(*patient), identity.case(patient[1])
    series = "s" + identity.digest("series", str(dataset.get("SeriesInstanceUID") or ""), length=12)
    try:
        _clean(dataset, _rules(identity))
    except NotImplementedError as error:
        raise NotExported("an element of an unusual type is not covered by the profile's library; leave the file out") from error
    dataset.PatientID = dataset.PatientName = group
    dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", PROFILE
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Basic Application Confidentiality Profile"
    dataset.DeidentificationMethodCodeSequence = [code]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    _check_clean(dataset, secrets)
    target = Path(group) / case / series / f"{dataset.SOPInstanceUID}.dcm"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    (out / target).parent.mkdir(parents=True, exist_ok=True)
    (out / target).write_bytes(buffer.getvalue())
    return target


def _check_exportable(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise NotExported("is not an image; reports, documents and structure sets are not exported")
    burned = str(dataset.get("BurnedInAnnotation") or "").upper()
    if burned == "YES":
        raise NotExported("says that text is burned into its pixels (BurnedInAnnotation YES); clean the pixels first")
    plain = dataset.get("Modality") in _IMAGE_MODALITIES and not str(dataset.get("SOPClassUID")).startswith(_SECONDARY_CAPTURE)
    if burned != "NO" and not plain:
        raise NotExported("is of a kind that often has text in its pixels and does not say BurnedInAnnotation NO; look at it first")


def _rules(identity: Identity) -> dict[tuple[int, ...], Callable[..., None]]:
    """Return the library's table of the profile, with our UIDs instead of random ones."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    from dicomanonymizer.simpledicomanonymizer import initialize_actions_2024b

    def new_uid(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is not None and element.value:
            values = element.value if isinstance(element.value, MultiValue | list) else [element.value]
            renewed = [_uid(identity, str(value)) for value in values]
            element.value = renewed if len(renewed) > 1 else renewed[0]

    def references(dataset: Dataset, tag: tuple[int, int]) -> None:
        """Keep the sequence: the profile allows it if the UIDs in it are replaced, which :func:`_clean` does."""
        element = dataset.get(tag)
        if element is not None and element.VR != "SQ":
            new_uid(dataset, tag)

    table = dicom_anonymization_database_selector("dicomfields_2024b")
    rules: dict[tuple[int, ...], Callable[..., None]] = dict(initialize_actions_2024b())
    rules.update(dict.fromkeys(table["U_TAGS"], new_uid))
    rules.update(dict.fromkeys(table["X_Z_U_STAR_TAGS"], references))
    return rules


def _uid(identity: Identity, old: str) -> str:
    return f"2.25.{int(identity.digest('uid', old), 16)}"


def _clean(dataset: Dataset, rules: dict[tuple[int, ...], Callable[..., None]]) -> None:
    """Apply the table here and in every remaining sequence, since the library handles only the top level."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset

    anonymize_dataset(dataset, delete_private_tags=True, base_rules_gen=lambda: dict(rules))
    for element in list(dataset):
        if not dictionary_has_tag(element.tag) and not _is_repeating(element):
            del dataset[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                _clean(item, rules)


def _is_repeating(element: DataElement) -> bool:
    """Whether an element repeats, as overlays do; the table removes those that may identify."""
    from pydicom.datadict import repeater_has_tag

    return repeater_has_tag(int(element.tag))


def _secrets(dataset: Dataset) -> Iterator[str]:
    """Yield what identifies the patient, to search for it afterwards; names of people also in their parts."""
    for keyword in _IDENTIFYING:
        if keyword not in dataset:
            continue
        element = dataset[keyword]
        for item in element.value if isinstance(element.value, MultiValue | list) else [element.value]:
            text = str(item or "").strip().casefold()
            parts = re.split(r"[\^=,; ]+", text) if element.VR == "PN" else []
            yield from (part for part in (text, *parts) if len(part) >= _SHORTEST)


def _check_clean(dataset: Dataset, secrets: set[str]) -> None:
    """Refuse a file if any string in it still identifies the patient, independent of the table."""
    for element in (*dataset.file_meta, *dataset.iterall()):
        if element.VR not in _TEXTS or element.keyword == "PixelData":
            continue
        text = (element.value.decode("latin-1") if isinstance(element.value, bytes) else str(element.value)).casefold()
        # a short number occurs in many hashes by chance, so new UIDs are searched for old UIDs only
        if any(secret in text for secret in secrets if element.VR != "UI" or "." in secret):
            raise NotExported(f"its {element.keyword or 'unknown element'} still has a name or number of the patient; leave the file out")
