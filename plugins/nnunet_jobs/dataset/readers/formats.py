"""Chooses the reader of a file: one function for all endings that nnU-Net reads, which never raises for bad content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunet_jobs.contract.failure import JobError
from nnunet_jobs.dataset.names import split_ending
from nnunet_jobs.dataset.readers.itk import read_itk
from nnunet_jobs.dataset.readers.nifti import read_nifti
from nnunet_jobs.dataset.readers.pictures import read_picture
from nnunet_jobs.dataset.readers.volume import Beat, DamagedFile, Reading, Reserve, Volume
from nnunet_jobs.dataset.readers.words import library_says
from nnunet_jobs.faults.codes import Code

_READERS: dict[str, Callable[[Reading], None]] = {
    ".nii.gz": read_nifti,
    ".nii": read_nifti,
    ".mha": read_itk,
    ".nrrd": read_itk,
    ".png": read_picture,
    ".bmp": read_picture,
    ".tif": read_picture,
    ".tiff": read_picture,
}
_NNUNET_READERS = {  # nnunetv2.imageio.reader_writer_registry asks its readers in a fixed order
    ".nii.gz": "SimpleITKIO",
    ".nii": "NibabelIO",
    ".mha": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tif": "NaturalImage2DIO",  # stacks are left to Tiff3DIO
    ".tiff": "Tiff3DIO",
}


def read_volume(
    path: Path,
    *,
    case: str,
    name: str,
    label: bool,
    beat: Beat,
    reserve: Reserve = lambda _size: None,
    keep: bool = False,
    reader: str = "",
) -> Volume:
    """Read a whole file and find its own faults. Never raises for bad content; never blocks on pipes and devices.

    Args:
        path: The file; its ending determines the reader.
        case: Id of the case, for the faults.
        name: Name of the file, for the faults.
        label: Check values as labels, else as intensities.
        beat: Called for each MiB; it may raise to stop.
        reserve: Called with bytes that will be needed before they are; it may raise MemoryError.
        keep: Leave the voxels in ``array``.
        reader: Class name of nnU-Net's reader that the file must suit; default :func:`nnunet_reader` of its ending.
    """
    volume = Volume()
    ending = split_ending(path.name)[1]
    reader = reader or nnunet_reader(ending)
    reading = Reading(volume=volume, path=path, case=case, name=name, label=label, beat=beat, reserve=reserve, reader=reader)
    try:
        if not ending:
            raise DamagedFile(Code.ENDING_UNSUPPORTED, "has an ending that nnU-Net does not read; convert it to .nii.gz")
        _READERS[ending](reading)
    except DamagedFile as damaged:
        reading.fault(damaged.code, str(damaged))
    except OSError as error:
        # Pillow raises OSErrors without a number for bad content; the system's have one.
        code = Code.UNREADABLE if error.errno is not None else _bad(ending)
        reading.fault(code, f"cannot be read: {error.strerror or library_says(error)}")
    except (JobError, MemoryError):
        raise
    except Exception as error:  # bad content makes the libraries raise almost any error; each is a fault of this file
        reading.fault(_bad(ending), f"not a readable {'NIfTI' if '.nii' in ending else ending} file ({library_says(error)})")
    if not keep:
        volume.array = None
    return volume


def nnunet_reader(ending: str, named: str | None = None) -> str:
    """Return the class name of the reader that nnU-Net uses for files of a dataset.

    Args:
        ending: Ending of the dataset's files.
        named: ``overwrite_image_reader_writer`` of ``dataset.json``, which has priority.
    """
    return named if named and named != "None" else _NNUNET_READERS.get(ending, "")


def _bad(ending: str) -> Code:
    return Code.NOT_NIFTI if ending.startswith(".nii") else Code.NOT_READABLE
