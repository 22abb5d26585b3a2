"""Checks the geometry of a NIfTI header: its fields must agree with each other, and nnU-Net's reader must accept it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_jobs.dataset.readers.agreement import DEFAULT_TOLERANCE, EXTENT, affine_distance, voxel_order
from nnunet_jobs.dataset.readers.itk import itk_refusal
from nnunet_jobs.dataset.readers.volume import Reading, shown_mm, skew, take_geometry
from nnunet_jobs.faults.codes import Code

_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}  # of xyzt_units; nnU-Net's reader scales spacing and origin by them
_TEMPLATES = (3, 4)  # sform codes of standard brains: their voxels may have another size than the scanner's
# Up to here ITK accepts an affine as orthogonal (it refuses from about 2e-4 on); rounding to 32 bits adds 1e-7.
_SURELY_ORTHOGONAL = 5e-5


def take_nifti_geometry(reading: Reading, header: Any, shape: Sequence[int], *, flat: bool) -> bool:
    """Check what the header says about voxel size and place, and put it into the volume where it is sound.

    Args:
        header: Header as nibabel read it.
        shape: Voxels along x, y, z.
        flat: The file has two axes only.
    """
    pixdim = [float(value) for value in header["pixdim"][1:4]]
    if flat and not (math.isfinite(pixdim[2]) and pixdim[2] > 0):
        pixdim[2] = 1.0  # the third axis of a 2D image means nothing
        header["pixdim"][3] = 1.0
    if not all(math.isfinite(value) and value > 0 for value in pixdim):
        return take_geometry(reading, tuple(pixdim), np.eye(4))  # nibabel's own reader would correct zeros
    affine: npt.NDArray[np.float64] = np.array(header.get_best_affine(), dtype=np.float64)
    if flat and not affine[:3, 2].any():
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / max(float(np.linalg.norm(affine[:3, 0])) * pixdim[1], 1e-12)
    unit, scale = _UNITS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if unit:
        affine[:3] *= scale
        reading.fault(
            Code.UNITS_SUSPICIOUS, f"says that its spacing {shown_mm(pixdim)[:-3]} is in {unit}; nnU-Net's reader converts it, check it"
        )
    if not take_geometry(reading, tuple(value * scale for value in pixdim), affine, millimetres=not unit):
        return False
    reading.volume.planar = flat
    agreed = _contradictions(reading, header, shape, pixdim, flat=flat)
    return _ask_reader(reading, header, agreed=agreed)


def _contradictions(reading: Reading, header: Any, shape: Sequence[int], pixdim: Sequence[float], *, flat: bool) -> bool:
    """Whether voxel size, qform and sform agree; differences become faults."""
    sform, code = header.get_sform(coded=True)
    if not code:
        return True
    axes = 2 if flat else 3
    sizes = np.linalg.norm(sform[:3, :axes], axis=0)
    if (np.abs(sizes - pixdim[:axes]) > DEFAULT_TOLERANCE * np.maximum(sizes, pixdim[:axes])).any():
        message = (
            f"has voxels of {shown_mm(pixdim[:axes])} by its pixdim and of {shown_mm([float(size) for size in sizes])} by its sform; "
            "nnU-Net takes the pixdim, other programs the sform: write the file again with the true voxel size in both"
        )
        reading.fault(Code.GEOMETRY_CONTRADICTS, message, severity="warning" if int(code) in _TEMPLATES else "error")
        return False
    try:
        qform, _ = header.get_qform(coded=True)
    except Exception:  # nibabel raises several types for invalid quaternions
        reading.fault(
            Code.GEOMETRY_CONTRADICTS, "has a qform that is not a rotation beside its sform; write the file again", severity="warning"
        )
        return False
    if qform is None or (moved := affine_distance(qform, sform, shape)) <= EXTENT * DEFAULT_TOLERANCE * min(pixdim):
        return True
    orders = voxel_order(qform), voxel_order(sform)
    turned = f", with the voxel order {orders[0]} and {orders[1]}" if orders[0] != orders[1] else ""
    message = (
        f"lies at two places: its qform and its sform are up to {moved:.3g} mm apart{turned}; "
        "programs use one or the other; find out which one the labels were drawn with, and write the file again with it in both"
    )
    reading.fault(Code.GEOMETRY_CONTRADICTS, message, severity="warning")
    return False


def _ask_reader(reading: Reading, header: Any, *, agreed: bool) -> bool:
    """Let ITK check a header that it may refuse. This is done only in doubt, since importing ITK takes longer than reading 100 files."""
    doubtful = not agreed or skew(reading.volume.affine) > _SURELY_ORTHOGONAL or int(header["sizeof_hdr"]) != 348
    if not doubtful or not reading.reader.startswith("SimpleITK"):
        return True
    refusal = itk_refusal(reading.path)
    if refusal is None:
        return True
    reading.volume.affine = None
    if "orthonormal" in refusal:
        message = (
            f"has axes that are not orthogonal ({skew_shown(header)}); nnU-Net's reader refuses it ({refusal}), "
            "resample the image to orthogonal axes, or write an orthogonal qform beside the sform"
        )
        reading.fault(Code.AFFINE_INVALID, message)
    elif int(header["sizeof_hdr"]) == 540:
        reading.fault(Code.READER_REFUSES, "is NIfTI-2, which nnU-Net's reader for .nii.gz does not read; write it again as NIfTI-1")
    else:
        reading.fault(Code.READER_REFUSES, f"is refused by nnU-Net's reader ({refusal}); write the file again")
    return False


def skew_shown(header: Any) -> str:
    """Describe how far the header's axes are from orthogonal."""
    return f"cosine {skew(np.array(header.get_best_affine(), dtype=np.float64)):.2g} between two of them"
