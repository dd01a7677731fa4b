"""Options of `medvfm segment`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medvfm_jax.settings.runtime import RuntimeName

Box = tuple[float, float, float, float]
Point = tuple[float, float, int]
Box3d = tuple[float, float, float, float, float, float]
Point3d = tuple[float, float, float, int]


@dataclass(frozen=True)
class SegmentArgs:
    """Segment pictures or volumes with boxes, clicks, or a delta that needs no prompts.

    Example: medvfm segment cells.png --model lite-medsam --box 30 40 110 120 --box 200 60 260 130 --out mask.png

    Example: medvfm segment scans/*.nii.gz --run runs/a --out masks

    Example: medvfm segment scans --run runs/a --out masks

    Example: medvfm segment ct.nii.gz --model sam2-tiny --slice 40 --box 30 40 110 120 --propagate --out mask.nii.gz

    Example: medvfm segment cells.png --model sam-b --weights sam_vit_b_01ec64.pth --point 64 80 1 --point 90 40 0
    --refine --out mask.png

    Example: medvfm segment cells.png --model mobile-sam --weights mobile_sam.pt --automatic --out mask.png

    Coordinates are pixels of the original image, x to the right, y down. Each --box is an object with a number
    of its own, 1, 2, ... in the mask; all --point belong to one object, or to the one --box. Without prompts the
    numbers are the classes of the data the delta was trained on.
    """

    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Images to segment: PNG, JPEG, TIFF, NIfTI, .npy, DICOM. Of a folder its images, and what else lies in it is
    skipped and said, or the DICOM series it holds."""
    out: Path
    """Mask to write, on the image's own grid; for several images, or a folder of them, a folder."""
    model: str | None = None
    """Pretrained model to prompt, or the base of --delta."""
    delta: Path | None = None
    """Delta (safetensors) to use with the model it was made for."""
    run: Path | None = None
    """Run directory whose delta, base weights and number format are used."""
    ensemble: tuple[Path, ...] = ()
    """More run directories, whose probabilities are averaged with those of --run; models without prompts."""
    task: str | None = None
    """Site whose task the images are of, with a delta that knows tasks."""
    box: tyro.conf.UseAppendAction[tuple[Box, ...]] = ()
    """X0 Y0 X1 Y1 around an object; may be given several times."""
    point: tyro.conf.UseAppendAction[tuple[Point, ...]] = ()
    """X Y LABEL, label 1 inside the object, 0 outside; may be given several times."""
    index: Annotated[int | None, tyro.conf.arg(name="slice")] = None
    """Slice of a volume that the prompts belong to, counted from 0."""
    point_3d: tyro.conf.UseAppendAction[tuple[Point3d, ...]] = ()
    """Z Y X LABEL in voxels of a volume, Z the slice and Y X its pixels, for models that see volumes; may be given
    several times. All belong to one object, or to the one --box-3d."""
    box_3d: tyro.conf.UseAppendAction[tuple[Box3d, ...]] = ()
    """Z0 Y0 X0 Z1 Y1 X1 around an object of a volume; may be given several times."""
    propagate: bool = False
    """Follow the objects of that slice through the whole volume, in both directions (SAM 2)."""
    refine: bool = False
    """Give the points one after the other, the box before them, and feed the mask of each step back with the next."""
    mask: Path | None = None
    """Mask to begin with, on the grid of the image: one object, 0 outside; with points or a box, or alone."""
    automatic: bool = False
    """Masks of everything, from a grid of points: numbered from the best one on, with a table of them in a .csv
    beside the mask. For models trained with points."""
    points_per_side: int | None = None
    """Of that grid; by default 32."""
    pred_iou: float | None = None
    """Least IoU that the model expects of a mask, for --automatic; by default 0.88."""
    stability: float | None = None
    """Least stability score of a mask (how little its edge depends on the threshold), for --automatic; by default
    0.95."""
    box_nms: float | None = None
    """Of two masks whose boxes have a larger IoU the better one stays, for --automatic; by default 0.7."""
    crop_layers: int | None = None
    """Layers of overlapping crops that are looked at too, 4, 16, ... of them, for small objects; by default 0."""
    min_area: int | None = None
    """Fill holes and remove islands of fewer pixels in the masks of --automatic; by default 0."""
    multimask: bool = False
    """Of three candidate masks take the one the model rates best; for ambiguous clicks."""
    overlap: float | None = None
    """Share of a window that the next one covers too, for models that see slabs or patches of volumes or tiles of
    pictures; by default 0.5. More is smoother and slower."""
    logits: Path | None = None
    """Write low_res_logits, iou and logits at the original size into this .npz file (one image only)."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    runtime: RuntimeName = "jax"
    """What encodes pictures: another runtime on the CPU, with float32 or 8-bit products (-int8), needs its extra,
    [onnx] or [litert]. The encoder is exported once, checked against JAX and kept; the decoder stays in JAX."""
    overwrite: bool = False
    """Replace files that exist."""
    offline: bool = False
    """Never touch the network."""
