"""Explains each code of a fault and how to fix it, for the fix plan and ``docs/reference/faults.md``."""

from __future__ import annotations

from nnunet_jobs.faults.codes import Code, FaultInfo
from nnunet_jobs.faults.dicom_fixes import DICOM_FAULT_INFO

FAULT_INFO: dict[Code, FaultInfo] = {
    Code.PATH_OUTSIDE: FaultInfo(
        "error",
        "A path or link leads out of the source, or could: absolute, `..`, `$ENV`, a link, a header that names another data file.",
        "Copy the file into the source and name it relative to it; write images with header and data in one file.",
    ),
    Code.NAME_INVALID: FaultInfo(
        "error",
        "The case id has characters that file systems, shells or nnU-Net cannot handle.",
        "Rename the files: letters, digits, `_`, `-`, `.`, at most 120, starting with a letter or digit, not ending with `.` or `_seg`.",
    ),
    Code.NAME_CLASH: FaultInfo(
        "error",
        "Two case ids differ only by upper and lower case or by Unicode form, so that some file systems hold only one of them.",
        "Rename one of the two cases, its image files and its label file.",
    ),
    Code.NAME_UNMATCHED: FaultInfo(
        "error",
        "A file among the images has a name that does not match the naming rule.",
        "Rename it to `<case>_<channel, 4 digits><ending>`, set `case_pattern`, or move it away.",
    ),
    Code.CASE_DUPLICATE: FaultInfo(
        "error", "The same case, channel or label is there twice.", "Keep one of the files and move the other away."
    ),
    Code.CASE_REMOVED: FaultInfo(
        "error", "A registered case is no longer in the source.", "Bring it back, or set `on_removed` to `keep` or `drop`."
    ),
    Code.CASE_CHANGED: FaultInfo(
        "error", "A registered case has other content in the source.", "Restore it in the source, or set `on_changed` to `update`."
    ),
    Code.NO_CASES: FaultInfo(
        "error", "There is no case.", "Check whether path and layout are right, and set `layout` if it is recognised wrongly."
    ),
    Code.SINGLE_CASE: FaultInfo(
        "warning", "There is only one labelled case: no fold can be trained and validated on different cases.", "Add cases."
    ),
    Code.DESCRIPTION_INVALID: FaultInfo(
        "error",
        "`dataset.json` is not JSON, or an entry does not have the form that its layout needs.",
        "Correct the entry that the message names.",
    ),
    Code.LABELS_INVALID: FaultInfo(
        "error",
        "The table of channels or labels is malformed.",
        'Write `{"0": "T1"}` for channels, `{"background": 0, "tumour": 1}` for labels.',
    ),
    Code.BACKGROUND_MISSING: FaultInfo(
        "error", "No label is called `background` with the value 0.", 'Add `"background": 0` to the labels.'
    ),
    Code.LABELS_NOT_CONSECUTIVE: FaultInfo(
        "error", "Label values have a gap.", "Number the labels 0, 1, 2, ... in the table and in the label images."
    ),
    Code.IGNORE_NOT_HIGHEST: FaultInfo(
        "error",
        "The label `ignore` is not one value above all others.",
        "Give `ignore` the highest value, in the table and in the label images.",
    ),
    Code.REGIONS_ORDER_INVALID: FaultInfo(
        "error",
        "Labels are regions and `regions_class_order` is missing or does not fit them: "
        "even a perfect network could not give every region back.",
        "List one value for each region in the order of the labels: larger regions first, each with a value that no smaller region has.",
    ),
    Code.SPLITS_INVALID: FaultInfo(
        "error or warning",
        "The source's own `splits_final.json` cannot be used: its form, unknown cases, a case on both sides of a fold, or an empty side. "
        "It is a warning if a patient is on both sides, or if there is only an old `splits_final.pkl`, which is not read.",
        "Correct the fold that the message names, or remove the file, so that splits are made.",
    ),
    Code.NO_TRAINING_CASE: FaultInfo(
        "error", "No labelled case is left to train on.", "Add labelled cases that are neither hold-out nor test cases."
    ),
    Code.GROUP_UNMATCHED: FaultInfo(
        "error", "`group_pattern` does not match a case id, so its patient is unknown.", "Widen the pattern, or rename the case."
    ),
    Code.IMAGE_MISSING: FaultInfo(
        "error", "A listed image, or a folder of images, is missing.", "Add the file, or take the case out of the list."
    ),
    Code.CHANNEL_MISSING: FaultInfo("error", "A channel of a case is missing.", "Add the missing file, or correct `channel_names`."),
    Code.CHANNEL_EXTRA: FaultInfo(
        "error", "A case has more channels than `channel_names` says.", "Name the channel in `channel_names`, or move the file away."
    ),
    Code.LABEL_MISSING: FaultInfo("error", "A training case has no label.", "Add the label file, or move the image to the test images."),
    Code.LABEL_WITHOUT_IMAGE: FaultInfo("error", "A label file belongs to no image.", "Add the image, rename the label, or move it away."),
    Code.FILE_UNUSED: FaultInfo(
        "warning",
        "An image file lies in a folder of the dataset and no case uses it.",
        "List it in `dataset.json`, or move it away if it is not needed.",
    ),
    Code.ENDING_MIXED: FaultInfo(
        "error",
        "Files have different endings; nnU-Net reads one ending a dataset (`.nii` and `.nii.gz` may be mixed, they are recoded).",
        "Convert the file to the ending of the others.",
    ),
    Code.ENDING_UNSUPPORTED: FaultInfo(
        "error",
        "No reader of nnU-Net reads files of this ending without loss.",
        "Convert to `.nii.gz`, `.nii`, `.mha`, `.nrrd`, or for 2D images to `.png`, `.bmp`, `.tif`.",
    ),
    Code.UNREADABLE: FaultInfo(
        "error", "The operating system refuses to read the file.", "Check its permissions and the disk, or copy it again."
    ),
    Code.EMPTY_FILE: FaultInfo("error", "The file has no bytes.", "Copy it again from where it came from."),
    Code.TRUNCATED: FaultInfo(
        "error",
        "The file ends before its data does. nnU-Net would read zeros for the rest.",
        "Copy it again from where it came from and compare sizes.",
    ),
    Code.GZIP_DAMAGED: FaultInfo(
        "error", "The compressed data is damaged (CRC or stream).", "Copy the file again from where it came from."
    ),
    Code.NOT_GZIP: FaultInfo(
        "error", "The name ends in `.gz`, the content is not compressed.", "Rename it to `.nii`, or compress it with gzip."
    ),
    Code.NOT_NIFTI: FaultInfo("error", "The file is not a readable NIfTI file.", "Write it again as NIfTI-1 from the original images."),
    Code.NOT_READABLE: FaultInfo(
        "error", "The file is not a readable image of its ending.", "Write it again from the original images with a common program."
    ),
    Code.CHECKSUM_WRONG: FaultInfo(
        "error", "A checksum inside the file does not match its data.", "Copy the file again from where it came from."
    ),
    Code.READER_CRASHED: FaultInfo(
        "error",
        "The process that read the case crashed or failed unexpectedly; another process checked the other cases.",
        "Check whether the host is short of memory and run again; if it happens again, write the case's files again.",
    ),
    Code.MEMORY_LIMIT: FaultInfo(
        "error",
        "Reading the case needs more memory than this host allows, or its header is wrong.",
        "Check the image size that the header claims; give the step more memory if it is right.",
    ),
    Code.TIME_LIMIT: FaultInfo(
        "error",
        "Reading the case took much longer than its size explains.",
        "Check whether the disk is slow or hangs, then run again; else write the files again.",
    ),
    Code.DTYPE: FaultInfo(
        "error",
        "Voxels are of a kind that nnU-Net cannot use (complex, colours or vectors in a medical image, palette colours in a label).",
        "Store integers or floating-point numbers of at most 64 bits, one file a channel.",
    ),
    Code.NOT_3D: FaultInfo(
        "error",
        "The image has the wrong number of dimensions, or is a single voxel or line.",
        "Store one three-dimensional (or 2D) image a file.",
    ),
    Code.DIMENSION_MIXED: FaultInfo(
        "error",
        "Some cases are single slices and others volumes; plans made for such a mix fit neither.",
        "Register 2D and 3D cases as two datasets.",
    ),
    Code.SPACING_INVALID: FaultInfo(
        "error", "A voxel size is zero, negative, infinite or NaN.", "Write the file again with the true voxel size in mm."
    ),
    Code.SPACING_ASSUMED: FaultInfo(
        "warning",
        "A 3D TIFF has no `<case>.json` with its spacing, so that nnU-Net takes 1 mm.",
        'Write `{"spacing": [z, y, x]}` (mm) beside the image and the label, if the voxels are not 1 mm.',
    ),
    Code.UNITS_SUSPICIOUS: FaultInfo(
        "warning",
        "The header says metres or micrometres, or the voxel size is implausible in mm.",
        "Check the voxel size against the scanner's; write it in mm with the unit code 2.",
    ),
    Code.AFFINE_INVALID: FaultInfo(
        "error",
        "The affine is sheared (its axes are not orthogonal), or has NaN, infinite or zero columns.",
        "Write the file again with a valid affine, or resample it to orthogonal axes.",
    ),
    Code.GEOMETRY_CONTRADICTS: FaultInfo(
        "error or warning",
        "The header has two voxel sizes or positions, and they differ (qform and sform, pixdim and sform, "
        "similar fields in MetaImage). It is an error if the voxel size differs, since nnU-Net resamples by it.",
        "Check in a viewer which one is right, and write the file again with that one in both places.",
    ),
    Code.READER_REFUSES: FaultInfo(
        "error",
        "nnU-Net's own reader for this ending does not read the file.",
        "Write the file again as the message says; or name another of nnU-Net's readers for the whole dataset as "
        "`overwrite_image_reader_writer` in `dataset.json`, such as `NibabelIO`.",
    ),
    Code.SHAPE_MISMATCH: FaultInfo(
        "error", "Channels or label of a case differ in shape.", "Resample or export the file again on the grid of the first channel."
    ),
    Code.SPACING_MISMATCH: FaultInfo(
        "error", "Channels or label of a case differ in voxel size.", "Resample or export the file again on the grid of the first channel."
    ),
    Code.AFFINE_MISMATCH: FaultInfo(
        "error",
        "Channels or label of a case lie in different places (origin or direction).",
        "Compare both in a viewer: resample if the positions are right, copy the affine if it was only lost.",
    ),
    Code.VOXEL_ORDER_MIXED: FaultInfo(
        "warning",
        "The voxels of a case are stored in another order than those of most cases. nnU-Net learns from voxels as they are stored, so that "
        "left and right, or head and foot, are mixed up.",
        "Reorient image and label of the named cases in the same way, such as with nibabel's `as_closest_canonical`; or name a reader that "
        "reorients, such as `NibabelIOWithReorient`, as `overwrite_image_reader_writer` in `dataset.json`.",
    ),
    Code.SLICE_DIRECTION: FaultInfo(
        "warning",
        "A single slice is not thicker than its pixels are wide, so that nnU-Net would plan its 2D network across the slice, along lines.",
        "Write the image with two axes, or give the slice a thickness larger than its pixels.",
    ),
    Code.IMAGE_SMALL: FaultInfo(
        "warning",
        "The images are so small that nnU-Net plans a network of fewer than three stages, which its usual training cannot use.",
        "Pad images and labels, or train with `nnUNetTrainerNoDeepSupervision`.",
    ),
    Code.VALUE_NAN: FaultInfo(
        "error",
        "There are NaN voxels. nnU-Net would turn them into 0, which may have another meaning in this image.",
        "Replace them by a sensible value, such as that of air.",
    ),
    Code.VALUE_INF: FaultInfo("error", "There are infinite voxels.", "Replace them by a sensible value."),
    Code.IMAGE_CONSTANT: FaultInfo(
        "warning",
        "All voxels of the image have one value, so that nothing can be learned from it.",
        "Check whether the export failed; take the case or the channel out.",
    ),
    Code.LABEL_NOT_INTEGER: FaultInfo(
        "error",
        "The label has values that are not integers, often from resampling with interpolation.",
        "Resample labels with nearest neighbour.",
    ),
    Code.LABEL_UNDECLARED: FaultInfo(
        "error", "The label has values that no label declares.", "Correct the label image, or declare the value in the labels."
    ),
    Code.LABEL_UNUSED: FaultInfo(
        "warning",
        "A declared label is in no case, so that the network cannot learn it.",
        "Check whether an export lost it; else remove it from the labels.",
    ),
    Code.LABEL_EMPTY: FaultInfo(
        "warning", "The label of a case holds background only.", "This is correct for a case without findings; else export the label again."
    ),
    Code.LABELS_ALL_EMPTY: FaultInfo(
        "error", "Every label holds background or 'ignore' only: there is nothing to learn.", "Export the labels again."
    ),
    Code.SOURCE_CHANGED: FaultInfo("error", "A file changed while it was read or copied.", "Run again when the source no longer changes."),
    Code.MAPPING_INVALID: FaultInfo(
        "error",
        "A table (`mapping`, or the TSV files of BIDS) is malformed: encoding, delimiter, columns, or an entry.",
        "Correct the line that the message names.",
    ),
    Code.ARCHIVE_UNSAFE: FaultInfo(
        "error",
        "An archive has an entry that could write outside its folder or over another: by path, link, device or repeated name.",
        "Pack the dataset again, with plain relative names and with files instead of links.",
    ),
    Code.ARCHIVE_DAMAGED: FaultInfo(
        "error",
        "An archive ends early, or its checksums or headers do not match.",
        "Copy the archive again from where it came from and compare sizes.",
    ),
    Code.ARCHIVE_ENCRYPTED: FaultInfo("error", "An archive is protected by a password.", "Pack the dataset again without one."),
    Code.ARCHIVE_TOO_LARGE: FaultInfo(
        "error",
        "An archive would unpack to far more bytes or entries than its own size explains.",
        "Unpack it by hand if it is sound, and name the folder.",
    ),
    Code.ARCHIVE_NESTED: FaultInfo(
        "error", "An archive holds nothing but further archives, which are not opened.", "Unpack it and name one of them."
    ),
    Code.WITHDRAWN: FaultInfo(
        "error or warning",
        "A case has the image of a case whose consent was withdrawn. A copy under a new name is left out with a warning; a registered "
        "case that would become one is an error.",
        "Remove the copy from the source; restore the registered case's own image, or withdraw that case too.",
    ),
    **DICOM_FAULT_INFO,
}
