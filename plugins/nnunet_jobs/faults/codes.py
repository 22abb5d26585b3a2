"""Defines stable codes of what can be wrong with a dataset, and the error that reports all faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nnunet_jobs.contract.failure import DataError, Fault

_LISTED = 20


class Code(StrEnum):
    """Codes of faults. The values are stable, since reports and dashboards count them.

    :data:`~nnunet_jobs.faults.fixes.FAULT_INFO` says what each means and how to fix it.
    """

    PATH_OUTSIDE = "path_outside"
    NAME_INVALID = "name_invalid"
    NAME_CLASH = "name_clash"
    NAME_UNMATCHED = "name_unmatched"
    CASE_DUPLICATE = "case_duplicate"
    CASE_REMOVED = "case_removed"
    CASE_CHANGED = "case_changed"
    NO_CASES = "no_cases"
    SINGLE_CASE = "single_case"
    DESCRIPTION_INVALID = "description_invalid"
    LABELS_INVALID = "labels_invalid"
    BACKGROUND_MISSING = "background_missing"
    LABELS_NOT_CONSECUTIVE = "labels_not_consecutive"
    IGNORE_NOT_HIGHEST = "ignore_not_highest"
    REGIONS_ORDER_INVALID = "regions_order_invalid"
    SPLITS_INVALID = "splits_invalid"
    NO_TRAINING_CASE = "no_training_case"
    GROUP_UNMATCHED = "group_unmatched"
    IMAGE_MISSING = "image_missing"
    CHANNEL_MISSING = "channel_missing"
    CHANNEL_EXTRA = "channel_extra"
    LABEL_MISSING = "label_missing"
    LABEL_WITHOUT_IMAGE = "label_without_image"
    FILE_UNUSED = "file_unused"
    ENDING_MIXED = "ending_mixed"
    ENDING_UNSUPPORTED = "ending_unsupported"
    UNREADABLE = "unreadable"
    EMPTY_FILE = "empty_file"
    TRUNCATED = "truncated"
    GZIP_DAMAGED = "gzip_damaged"
    NOT_GZIP = "not_gzip"
    NOT_NIFTI = "not_nifti"
    NOT_READABLE = "not_readable"
    CHECKSUM_WRONG = "checksum_wrong"
    READER_CRASHED = "reader_crashed"
    MEMORY_LIMIT = "memory_limit"
    TIME_LIMIT = "time_limit"
    DTYPE = "dtype"
    NOT_3D = "not_3d"
    DIMENSION_MIXED = "dimension_mixed"
    SPACING_INVALID = "spacing_invalid"
    SPACING_ASSUMED = "spacing_assumed"
    UNITS_SUSPICIOUS = "units_suspicious"
    AFFINE_INVALID = "affine_invalid"
    GEOMETRY_CONTRADICTS = "geometry_contradicts"
    READER_REFUSES = "reader_refuses"
    SHAPE_MISMATCH = "shape_mismatch"
    SPACING_MISMATCH = "spacing_mismatch"
    AFFINE_MISMATCH = "affine_mismatch"
    VOXEL_ORDER_MIXED = "voxel_order_mixed"
    SLICE_DIRECTION = "slice_direction"
    IMAGE_SMALL = "image_small"
    VALUE_NAN = "value_nan"
    VALUE_INF = "value_inf"
    IMAGE_CONSTANT = "image_constant"
    LABEL_NOT_INTEGER = "label_not_integer"
    LABEL_UNDECLARED = "label_undeclared"
    LABEL_UNUSED = "label_unused"
    LABEL_EMPTY = "label_empty"
    LABELS_ALL_EMPTY = "labels_all_empty"
    SOURCE_CHANGED = "source_changed"
    LABEL_OBJECT = "label_object"
    LABEL_REFERENCE = "label_reference"
    LABEL_GRID = "label_grid"
    LABEL_OVERLAP = "label_overlap"
    SEGMENT_UNKNOWN = "segment_unknown"
    SEGMENT_AMBIGUOUS = "segment_ambiguous"
    SEGMENT_TWICE = "segment_twice"
    CONTOUR_PLANE = "contour_plane"
    CONTOUR_TYPE = "contour_type"
    CONTOUR_GAP = "contour_gap"
    CONTOUR_OVERLAP = "contour_overlap"
    DICOM_UNREADABLE = "dicom_unreadable"
    DICOM_DUPLICATE = "dicom_duplicate"
    DICOM_PATIENT = "dicom_patient"
    DICOM_GEOMETRY_MISSING = "dicom_geometry_missing"
    DICOM_SLICE_MISSING = "dicom_slice_missing"
    DICOM_SLICE_DUPLICATE = "dicom_slice_duplicate"
    DICOM_SPACING_VARIES = "dicom_spacing_varies"
    DICOM_TILT = "dicom_tilt"
    DICOM_ORIENTATION_MIXED = "dicom_orientation_mixed"
    DICOM_MATRIX_VARIES = "dicom_matrix_varies"
    DICOM_COLOUR = "dicom_colour"
    DICOM_SINGLE_SLICE = "dicom_single_slice"
    DICOM_SEVERAL_VOLUMES = "dicom_several_volumes"
    DICOM_PIXELS = "dicom_pixels"
    DICOM_VALUES = "dicom_values"
    DICOM_LOSSY = "dicom_lossy"
    DICOM_SERIES_MISSING = "dicom_series_missing"
    DICOM_SERIES_AMBIGUOUS = "dicom_series_ambiguous"
    MAPPING_INVALID = "mapping_invalid"
    ARCHIVE_UNSAFE = "archive_unsafe"
    ARCHIVE_DAMAGED = "archive_damaged"
    ARCHIVE_ENCRYPTED = "archive_encrypted"
    ARCHIVE_TOO_LARGE = "archive_too_large"
    ARCHIVE_NESTED = "archive_nested"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class FaultInfo:
    """What a code means, and how to fix it.

    Attributes:
        severity: Severity of the code's faults: ``error``, ``warning``, or ``error or warning`` if it depends on the
            fault.
        what: What is wrong.
        fix: How to fix it.
    """

    severity: str
    what: str
    fix: str


def data_error(faults: Sequence[Fault], *, what: str) -> DataError:
    """Return one error with all faults and the first 20 in its message. Unprintable names are escaped."""
    faults = [shown(fault) for fault in faults]
    cases = len({fault.case for fault in faults if fault.case})
    lines = [f"  {fault}" for fault in faults[:_LISTED]]
    if len(faults) > _LISTED:
        lines.append(f"  and {len(faults) - _LISTED} more")
    head = f"{what}: {len(faults)} fault{'s' if len(faults) != 1 else ''}" + (
        f" in {cases} case{'s' if cases != 1 else ''}" if cases else ""
    )
    return DataError("\n".join([head, *lines]), faults=faults)


def shown(fault: Fault) -> Fault:
    """Return the fault with names that are safe to print, since a source's file names may hold anything."""
    return replace(fault, case=_shown(fault.case), file=_shown(fault.file))


def _shown(name: str | None) -> str | None:
    """Return a name that cannot break a log line."""
    return name if name is None or name.isprintable() else ascii(name)
