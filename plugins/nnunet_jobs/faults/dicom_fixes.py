"""Explains the codes of DICOM sources and how to fix them: series, slices, and the objects that labels are read from."""

from __future__ import annotations

from nnunet_jobs.faults.codes import Code, FaultInfo

_SPLIT = "Export one volume a series, or choose another series by the rules in `series`."

DICOM_FAULT_INFO: dict[Code, FaultInfo] = {
    # --- labels ---------------------------------------------------------------------------------------------------------
    Code.LABEL_OBJECT: FaultInfo(
        "error",
        "An object that should hold labels is of a kind that is not read, or lacks what is needed to read it.",
        "Export the labels again as DICOM SEG or RTSTRUCT, with plane positions.",
    ),
    Code.LABEL_REFERENCE: FaultInfo(
        "error or warning",
        "A SEG or RTSTRUCT describes another series, other images or another frame of reference than its case has. If other objects "
        "of the case are used, it is left out with a warning; a case whose only label object cannot be used is an error.",
        "Segment on the series that the case is made of, choose the described series by the rules in `series`, or take the object out.",
    ),
    Code.LABEL_GRID: FaultInfo(
        "error",
        "A segmentation or contour does not lie on the voxels of its series, or lies outside it.",
        "Resample it to the grid of its series, or export the whole series.",
    ),
    Code.LABEL_OVERLAP: FaultInfo(
        "error", "Two labels claim the same voxels.", "Say in `priority` of `label_rules` which one wins, or correct the segmentation."
    ),
    Code.SEGMENT_UNKNOWN: FaultInfo(
        "error", "A segment or ROI matches no label.", "Name it in `label_rules`, or list it in `skip` of `label_rules`."
    ),
    Code.SEGMENT_AMBIGUOUS: FaultInfo("error", "A segment or ROI matches several labels.", "Make the patterns in `label_rules` narrower."),
    Code.SEGMENT_TWICE: FaultInfo(
        "error",
        "Two label objects of a case have a segment of the same name, for example by two readers.",
        "Keep the one that counts, or rename one of them.",
    ),
    Code.CONTOUR_PLANE: FaultInfo(
        "error", "A contour is oblique to the slices of its series or lies between two.", "Contour on the slices of the series itself."
    ),
    Code.CONTOUR_TYPE: FaultInfo(
        "error or warning",
        "Contours enclose nothing: open ones are an error, since an area may have been intended; points are left out with a warning.",
        "Close the contours, or list the ROI in `skip` of `label_rules`.",
    ),
    Code.CONTOUR_GAP: FaultInfo(
        "warning",
        "A ROI has no contour on some slices between its first and its last; nothing is filled in there.",
        "Check whether the structure has a gap there; else interpolate the contours in the program that drew them.",
    ),
    Code.CONTOUR_OVERLAP: FaultInfo(
        "warning",
        "Contours of one ROI cross on a slice, so that it is not clear what is inside.",
        "Look at the slice in the program that drew them, and make one outline of them.",
    ),
    # --- files and series -------------------------------------------------------------------------------------------
    Code.DICOM_UNREADABLE: FaultInfo(
        "error",
        "A file or series cannot be read as DICOM, lacks the UIDs that say where it belongs, or made its reader fail.",
        "Export it again, or move it away.",
    ),
    Code.DICOM_DUPLICATE: FaultInfo(
        "error or warning",
        "Two files have one SOPInstanceUID. A mere copy is left out with a warning; other content under the same UID is an error.",
        "Keep the right file and move the other away.",
    ),
    Code.DICOM_PATIENT: FaultInfo(
        "error or warning",
        "One study has files of two patients (error), or names no patient, so that its study stands for the patient (warning).",
        "Correct the PatientID; without one, make sure that no person's studies are in both training and hold-out.",
    ),
    Code.DICOM_GEOMETRY_MISSING: FaultInfo(
        "error",
        "Slices lack position, orientation or pixel spacing, or have invalid values there.",
        "Export the original images, not screenshots or secondary captures.",
    ),
    Code.DICOM_SLICE_MISSING: FaultInfo("error", "A series has holes: slices are missing.", "Export the whole series."),
    Code.DICOM_SLICE_DUPLICATE: FaultInfo("error", "Several slices of a series lie at one position.", _SPLIT),
    Code.DICOM_SPACING_VARIES: FaultInfo(
        "error", "Slices are not equally far apart, which NIfTI cannot store.", "Export a series with equal distances."
    ),
    Code.DICOM_TILT: FaultInfo(
        "error",
        "The stack leans against its slices (gantry tilt), which a NIfTI affine for nnU-Net cannot express.",
        "Reconstruct the series upright at the scanner, or choose another series.",
    ),
    Code.DICOM_ORIENTATION_MIXED: FaultInfo("error", "Slices lie in several orientations, as those of localizers do.", _SPLIT),
    Code.DICOM_MATRIX_VARIES: FaultInfo("error", "Slices differ in size or pixel spacing.", _SPLIT),
    Code.DICOM_COLOUR: FaultInfo("error", "The series holds colour images.", "Export the original images with grey values."),
    Code.DICOM_SINGLE_SLICE: FaultInfo(
        "error", "The series has one slice only, which has no distance to a next one.", "Choose a series with a volume."
    ),
    Code.DICOM_SEVERAL_VOLUMES: FaultInfo("error", "The series holds several volumes: time points, echoes or contrasts.", _SPLIT),
    Code.DICOM_PIXELS: FaultInfo(
        "error",
        "Pixel data is damaged, or stored in a way that is not read: transfer syntax, bits, Modality LUT.",
        "Export the original images, uncompressed.",
    ),
    Code.DICOM_VALUES: FaultInfo(
        "error or warning",
        "The meaning of stored values is missing, or differs between slices or series: RescaleSlope, RescaleIntercept, RescaleType, "
        "the Units of PET, or how pixels are encoded. If all PET has one unit other than BQML, that is a warning.",
        "Export the original images; register PET of different units as separate datasets.",
    ),
    Code.DICOM_LOSSY: FaultInfo(
        "warning",
        "Images have been compressed with loss, which a network may learn to see.",
        "Train on the original images if there are any.",
    ),
    Code.DICOM_SERIES_MISSING: FaultInfo(
        "error",
        "A study has no series that the rule of a channel chooses.",
        "Widen the rule in `series`, or take the study out of the source.",
    ),
    Code.DICOM_SERIES_AMBIGUOUS: FaultInfo(
        "error",
        "Several series of a study fit one channel, or one series fits several channels.",
        "Narrow the rules in `series`.",
    ),
}
