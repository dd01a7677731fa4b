"""Every object of a picture without prompts of a user: a grid of points is the prompt, and the best masks are kept.

Segment Anything's automatic mask generator.  The picture is encoded once, or once per crop, and the points are decoded
in batches of one size, so that one compiled decoder serves all of them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Query, make_prompts, restore
from medvfm_jax.images.frame import Limits, unit_channels
from medvfm_jax.predict.encoded import Encoded, Halves
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.settings.automatic import AutomaticConfig
from medvfm_jax.types import ModelSpec

Crop = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the picture; x1 and y1 belong to what follows
EDGE = 20  # pixels: a box so near to the edge of a crop is that of an object which the crop cuts
_PIXELS_AT_ONCE = 2**24  # of logits at the size of the picture


class Candidate(NamedTuple):
    """One mask of a picture.

    Attributes:
        box: x0, y0, x1, y1, its first and its last pixel, in pixels of the picture.
        part: (y1 - y0 + 1, x1 - x0 + 1) bool, the mask within its box.
        predicted_iou: IoU with the object as the model expects it.
        stability: see ``stability_scores``.
        point: x, y of the point that asked for it.
        crop: the part of the picture that the model saw.
    """

    box: Crop
    part: NDArray[np.bool_]
    predicted_iou: float
    stability: float
    point: tuple[float, float]
    crop: Crop

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.part.sum())

    def full(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask on the grid of the picture, (H, W)."""
        mask = np.zeros(shape, bool)
        mask[_within(self.box)] = self.part
        return mask


class AutomaticMasks(NamedTuple):
    """What was found in a picture.

    Attributes:
        labels: (H, W) int32: 1 for the mask with the highest predicted IoU, 2 for the next, ...; 0 where there is none.
            Where masks overlap, the better one has the pixel, so a mask may be partly or wholly hidden.
        masks: in that order, whole.
    """

    labels: NDArray[np.int32]
    masks: tuple[Candidate, ...]

    def rows(self) -> list[dict[str, float]]:
        """One row per mask: its number, box, scores, area, the pixels it has in ``labels``, point and crop."""
        seen = np.bincount(self.labels.reshape(-1), minlength=len(self.masks) + 1)
        return [
            {
                "number": number,
                **dict(zip(("x0", "y0", "x1", "y1"), mask.box)),
                "predicted_iou": mask.predicted_iou,
                "stability": mask.stability,
                "area": mask.area,
                "visible": int(seen[number]),
                **dict(zip(("point_x", "point_y"), mask.point)),
                **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), mask.crop)),
            }
            for number, mask in enumerate(self.masks, start=1)
        ]


def automatic_masks(
    model: Halves,
    picture: NDArray,
    config: AutomaticConfig | None = None,
    *,
    multimask: bool = True,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> AutomaticMasks:
    """Masks of everything in a picture; ``Segmenter.automatic`` is the call for users.

    Args:
        model: promptable, trained with points.
        picture: (H, W, C), any number type.
        config: the grid and what is kept; by default that of Segment Anything.
        multimask: three masks per point, as the reference asks for; else one.
        track: shows progress over the batches of points, whose numbers it gives back.

    Returns:
        The masks that are left, the best first, and a label map of them.

    Raises:
        BadLogits: the model gives numbers that are not finite.

    References:
        Kirillov et al. 2023, "Segment Anything", appendix B, https://arxiv.org/abs/2304.02643
        facebookresearch/segment-anything, ``segment_anything/automatic_mask_generator.py`` and ``utils/amg.py``
        Interpretation: logits are brought to the size of the picture in one step (see ``images.restore``); boxes hold
        whole pixels, see ``non_maximum_suppression``; crops keep the intensities of the whole picture.
    """
    config = config or AutomaticConfig()
    shape = picture.shape[0], picture.shape[1]
    unit = unit_channels(picture)
    crops = crop_boxes(shape, config.crop_layers, config.crop_overlap)
    grids = [_grid(config, layer) for _, layer in crops]
    size = min(config.points_per_batch, max(map(len, grids)))
    batches = [(i, start) for i, grid in enumerate(grids) for start in range(0, len(grid), size)]
    found: list[list[Candidate]] = [[] for _ in crops]
    encoded: Encoded | None = None
    for number in track(range(len(batches))):
        i, start = batches[number]
        crop = crops[i][0]
        if start == 0:
            limits = _limits(model.spec, unit) if i else None
            encoded = model.encode(unit[_pixels(crop)], limits)
        points = grids[i][start : start + size] * (crop[2] - crop[0], crop[3] - crop[1])
        found[i] += _of_points(model, encoded, points, size, crop, shape, config, multimask)
    masks = [mask for one in found for mask in _suppressed(one, config.box_nms)]
    if len(crops) > 1:
        smaller = [1 / ((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in (mask.crop for mask in masks)]
        masks = [masks[k] for k in non_maximum_suppression(_boxes(masks), smaller, config.crop_nms)]
    if config.min_area:
        masks = _cleaned(masks, shape, config)
    masks.sort(key=lambda mask: (-mask.predicted_iou, -mask.stability))
    return AutomaticMasks(label_map(masks, shape), tuple(masks))


def point_grid(per_side: int) -> NDArray[np.float64]:
    """Points in the middle of the cells of a grid over the unit square.

    Args:
        per_side: n, points along each side.

    Returns:
        (n * n, 2) x, y, row by row.
    """
    line = (np.arange(per_side) + 0.5) / per_side
    y, x = np.meshgrid(line, line, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def crop_boxes(shape: tuple[int, int], layers: int, overlap: float) -> list[tuple[Crop, int]]:
    """The whole picture, and layer after layer of crops that cover it.

    Layer i has 2**i crops along each side, of equal size, which overlap by ``overlap`` of the shorter side of the
    picture in layer 1, by half of that in layer 2, and so on.

    Args:
        shape: (H, W) of the picture.
        layers: beside the whole picture.
        overlap: share of the shorter side.

    Returns:
        (crop, number of its layer) each, the whole picture, layer 0, first.
    """
    height, width = shape
    crops: list[tuple[Crop, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(shape) * 2 / count)
        columns, rows = (_spans(side, count, shared) for side in (width, height))
        crops += [((x0, y0, x1, y1), layer) for x0, x1 in columns for y0, y1 in rows]
    # In a picture of a few pixels some crops hold nothing.
    return [(crop, layer) for crop, layer in crops if crop[2] > crop[0] and crop[3] > crop[1]]


def _spans(side: int, count: int, shared: int) -> list[tuple[int, int]]:
    length = math.ceil((shared * (count - 1) + side) / count)
    return [(i * (length - shared), min(i * (length - shared) + length, side)) for i in range(count)]


def stability_scores(logits: NDArray, offset: float) -> NDArray[np.float64]:
    """How little a mask changes when the threshold of its logits, 0, is moved.

    Args:
        logits: (..., H, W).
        offset: by which it is moved.

    Returns:
        (...) IoU of the mask above ``offset`` and the one above ``-offset``; 0 where both are empty.
    """
    inner = (logits > offset).sum((-2, -1))
    outer = (logits > -offset).sum((-2, -1))
    return inner / np.maximum(outer, 1)


def boxes_of(masks: NDArray) -> NDArray[np.int64]:
    """Masks (n, H, W), none of them empty -> (n, 4) x0, y0, x1, y1, the first and the last pixel."""
    columns, rows = masks.any(1), masks.any(2)
    first = [np.argmax(a, axis=1) for a in (columns, rows)]
    last = [a.shape[1] - 1 - np.argmax(a[:, ::-1], axis=1) for a in (columns, rows)]
    return np.stack([*first, *last], axis=1)


def non_maximum_suppression(boxes: NDArray, scores: Sequence[float], threshold: float) -> list[int]:
    """Of boxes that overlap much, the one with the highest score.

    Args:
        boxes: (n, 4) x0, y0, x1, y1, the first and the last pixel.
        scores: n numbers.
        threshold: a box goes if its IoU with a better one that stays is larger.

    Returns:
        Numbers of the boxes that stay, by falling score; of equal scores the first comes first.

    References:
        torchvision, ``torchvision/ops/boxes.py`` (``nms``). Interpretation: boxes hold whole pixels, so that a side is
        x1 - x0 + 1 pixels; with x1 - x0, as the reference has it, a box one pixel wide would overlap nothing.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low, high = (
            np.maximum(boxes[best, :2], boxes[order, :2]),
            np.minimum(boxes[best, 2:], boxes[order, 2:]),
        )
        shared = np.maximum(high - low + 1, 0).prod(1)
        order = order[shared / (areas[best] + areas[order] - shared) <= threshold]
    return kept


def cut_by_crop(
    boxes: NDArray, crop: Crop, shape: tuple[int, int], tolerance: int = EDGE
) -> NDArray[np.bool_]:
    """Whether a box ends where the crop does and the picture goes on.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the picture.
        crop: that the model saw.
        shape: (H, W) of the picture.
        tolerance: pixels that count as "where".

    Returns:
        (n,) bool.
    """
    height, width = shape
    near_crop = np.abs(boxes - np.array(crop)) <= tolerance
    near_picture = np.abs(boxes - np.array([0, 0, width, height])) <= tolerance
    return (near_crop & ~near_picture).any(1)


def without_small_regions(mask: NDArray, area: int) -> tuple[NDArray[np.bool_], bool]:
    """A mask whose small holes are filled and whose small islands are gone.

    Args:
        mask: (H, W) bool.
        area: holes and islands (pieces that touch at an edge or a corner) of fewer pixels are small; of a mask that is
            nothing but small islands the largest stays.

    Returns:
        (mask, whether it is another).

    References:
        facebookresearch/segment-anything, ``utils/amg.py`` (``remove_small_regions``).
    """
    from scipy import ndimage  # takes a third of a second

    touching = np.ones((3, 3), bool)
    result = np.array(mask, bool)
    holes, _ = ndimage.label(~result, touching)
    sizes = np.bincount(holes.reshape(-1))
    sizes[0] = area  # the mask itself
    result |= (sizes < area)[holes]
    islands, count = ndimage.label(result, touching)
    if count:
        sizes = np.bincount(islands.reshape(-1))
        stays = sizes >= area
        stays[0] = False
        if not stays.any():
            stays[1 + sizes[1:].argmax()] = True
        result &= stays[islands]
    return result, bool((result != mask).any())


def label_map(masks: Sequence[Candidate], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Masks, the best first -> (H, W) their numbers from 1 on; where several are, the best has the pixel."""
    labels = np.zeros(shape, np.int32)
    for number in range(len(masks), 0, -1):
        mask = masks[number - 1]
        labels[_within(mask.box)][mask.part] = number
    return labels


def _grid(config: AutomaticConfig, layer: int) -> NDArray[np.float64]:
    return point_grid(max(1, int(config.points_per_side / config.crop_points_downscale**layer)))


def _limits(spec: ModelSpec, unit: NDArray[np.float32]) -> Limits | None:
    return (float(unit.min()), float(unit.max())) if spec.normalise == "minmax" else None


def _pixels(crop: Crop) -> tuple[slice, slice]:
    """Rows and columns of a crop, whose last corner is outside."""
    return slice(crop[1], crop[3]), slice(crop[0], crop[2])


def _within(box: Crop) -> tuple[slice, slice]:
    """Rows and columns of a box, whose last corner is inside."""
    return slice(box[1], box[3] + 1), slice(box[0], box[2] + 1)


def _of_points(
    model: Halves,
    encoded: Encoded,
    points: NDArray,
    size: int,
    crop: Crop,
    shape: tuple[int, int],
    config: AutomaticConfig,
    multimask: bool,
) -> Iterator[Candidate]:
    """Masks of a batch of points, in pixels of the crop, that pass the thresholds; filled up to ``size`` points."""
    filled = np.concatenate([points, np.repeat(points[-1:], size - len(points), 0)]).astype(np.float32)
    label = np.ones(1, np.int32)
    prompts = make_prompts(encoded.frame, [Query(None, point[None], label) for point in filled])
    given = model.decode(encoded, prompts, multimask=multimask)
    low = finite_logits(given.logits, model.spec.name)[: len(points)]
    iou = np.asarray(given.iou, np.float64)[: len(points)]
    asked, which = np.nonzero((iou > config.pred_iou) | (config.pred_iou == 0))  # the head may go below 0
    at_once = max(1, _PIXELS_AT_ONCE // math.prod(encoded.frame.original))
    for start in range(0, len(asked), at_once):
        q, m = asked[start : start + at_once], which[start : start + at_once]
        logits = restore(encoded.frame, low[q, m])
        stable = stability_scores(logits, config.stability_offset)
        masks = logits > 0
        fine = (stable >= config.stability) & masks.any((-2, -1))
        q, m, stable, masks = q[fine], m[fine], stable[fine], masks[fine]
        boxes = boxes_of(masks)
        moved = boxes + np.array([crop[0], crop[1], crop[0], crop[1]])
        for k in np.flatnonzero(~cut_by_crop(moved, crop, shape)):
            x, y = points[q[k]] + crop[:2]
            yield Candidate(
                tuple(moved[k].tolist()),
                masks[k][_within(tuple(boxes[k].tolist()))].copy(),
                float(iou[q[k], m[k]]),
                float(stable[k]),
                (float(x), float(y)),
                crop,
            )


def _boxes(masks: Sequence[Candidate]) -> NDArray[np.int64]:
    return np.array([mask.box for mask in masks], np.int64).reshape(-1, 4)


def _suppressed(masks: Sequence[Candidate], threshold: float) -> list[Candidate]:
    kept = non_maximum_suppression(_boxes(masks), [mask.predicted_iou for mask in masks], threshold)
    return [masks[k] for k in kept]


def _cleaned(masks: Sequence[Candidate], shape: tuple[int, int], config: AutomaticConfig) -> list[Candidate]:
    """Without small regions; of masks that became alike, those that were not changed stay."""
    new, unchanged = [], []
    for mask in masks:
        whole, changed = without_small_regions(mask.full(shape), config.min_area)
        box = tuple(boxes_of(whole[None])[0].tolist())
        new.append(mask._replace(box=box, part=whole[_within(box)].copy()))
        unchanged.append(float(not changed))
    kept = non_maximum_suppression(_boxes(new), unchanged, max(config.box_nms, config.crop_nms))
    return [new[k] for k in kept]
