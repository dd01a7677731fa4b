"""DICOM files made here: single slices, series, and enhanced files of several frames."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STRAIGHT = (1, 0, 0, 0, 1, 0)


def save(path, pixels, position=(0, 0, 0), direction=STRAIGHT, series="1.2.3", syntax=None, **extra) -> None:
    """One slice (rows, columns) of CT; an ``extra`` of None takes the element out."""
    file = _file(path, pixels, series, syntax)
    file.PixelSpacing, file.ImagePositionPatient = [0.5, 0.7], list(position)
    file.ImageOrientationPatient = list(direction)
    for name, value in extra.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


def series(folder, depth=5, step=2.5, **extra) -> NDArray:
    """A folder of slices; returns the pixels (slice, row, column)."""
    folder.mkdir()
    stack = np.random.default_rng(0).integers(0, 2000, (depth, 6, 8))
    for k in np.random.default_rng(1).permutation(depth):  # file names say nothing about the order
        save(folder / f"f{(k * 7) % 10}.dcm", stack[k], (10, 20, 30 + step * k), **extra)
    return stack


def enhanced(
    path: Path, frames: NDArray, positions, *, slopes=None, intercept=-1024.0, shared=(), leave_out=""
) -> None:
    """Enhanced CT: (frames, rows, columns) with functional groups; ``shared``: those that hold for all frames."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def item(**values):
        inner = Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        return Sequence([inner])

    def group(names, position, slope):
        found = Dataset()
        if "position" in names:
            found.PlanePositionSequence = item(ImagePositionPatient=list(position))
        if "orientation" in names:
            found.PlaneOrientationSequence = item(ImageOrientationPatient=list(STRAIGHT))
        if "measures" in names:
            found.PixelMeasuresSequence = item(PixelSpacing=[0.5, 0.7], SliceThickness=2.5)
        if "rescale" in names:
            found.PixelValueTransformationSequence = item(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU"
            )
        return found

    file = _file(path, frames, "1.2.3", None)
    file.NumberOfFrames = len(frames)
    slopes = [1.0] * len(frames) if slopes is None else slopes
    names = {"position", "orientation", "measures", "rescale"} - {leave_out}
    file.SharedFunctionalGroupsSequence = Sequence([group(names & set(shared), (0, 0, 0), slopes[0])])
    per_frame = [group(names - set(shared), position, slope) for position, slope in zip(positions, slopes)]
    file.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    file.save_as(path, enforce_file_format=True)


def _file(path, pixels, series, syntax):
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.Modality = series, "CT"
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.PixelData = pixels.astype("<i2").tobytes()
    return file
