"""Reference and prediction as contours on the image they belong to -> PNG bytes."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from medvfm_jax.report.style import PREDICTION_COLOUR, REFERENCE_COLOUR

Segment = tuple[int, int, int, int]  # x0, y0, x1, y1 on pixel corners

_SUPERSAMPLE = 2  # drawn larger and averaged down: smooth lines


def draw(image: NDArray, reference: NDArray, prediction: NDArray, *, side: int = 480) -> bytes:
    """Contours of reference and prediction on an image.

    The picture shows the part around the two masks when they cover a small part of the image. The reference
    is drawn wide and the prediction narrow on top, so that both can be seen where they agree.

    Args:
        image: (H, W) or (H, W, C).
        reference: (H, W) bool.
        prediction: (H, W) bool.
        side: pixels of the picture's longer side.

    Returns:
        PNG bytes.

    Raises:
        ValueError: heights or widths differ.
    """
    reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
    if reference.shape != prediction.shape or np.shape(image)[:2] != reference.shape:
        raise ValueError(
            f"image {np.shape(image)}, reference {reference.shape} and prediction {prediction.shape} "
            "must have the same height and width"
        )
    rows, columns = window(reference | prediction)
    pixels = eight_bit(np.asarray(image)[rows, columns])
    height, width = pixels.shape[:2]
    scale = side * _SUPERSAMPLE / max(height, width)
    canvas = Image.fromarray(pixels).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(canvas)
    # (mask, colour, width of the line in pixels of the picture)
    layers = ((reference, REFERENCE_COLOUR, 4.0), (prediction, PREDICTION_COLOUR, 1.8))
    for mask, colour, weight in layers:
        half = weight * _SUPERSAMPLE / 2
        for segment in contour(mask[rows, columns]):
            x0, y0, x1, y1 = (v * scale for v in segment)
            # A rectangle that reaches over both ends: corners are closed.
            box = (round(x0 - half), round(y0 - half), round(x1 + half) - 1, round(y1 + half) - 1)
            pen.rectangle(box, ImageColor.getrgb(colour))
    canvas = canvas.resize(
        (max(1, canvas.width // _SUPERSAMPLE), max(1, canvas.height // _SUPERSAMPLE)), Image.Resampling.BOX
    )
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def contour(mask: NDArray) -> list[Segment]:
    """Boolean mask (H, W) -> its outline along pixel edges, each straight run one segment.

    The edge of the image is part of the outline: a mask that touches it is closed there.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    segments = []
    # Between column x - 1 and column x lies the line x; a change there is a piece of a vertical line.
    for vertical, plane in ((True, padded), (False, padded.T)):
        change = plane[1:-1, 1:] != plane[1:-1, :-1]  # (along, across)
        for across in np.flatnonzero(change.any(0)):
            for start, stop in _runs(change[:, across]):
                across = int(across)
                segments.append((across, start, across, stop) if vertical else (start, across, stop, across))
    return segments


def window(mask: NDArray, context: float = 0.6, smallest: int = 64) -> tuple[slice, slice]:
    """Boolean mask (H, W) -> rows and columns that show it with `context` of its size around.

    The whole image when the mask is empty, or when more than half of the image would be shown anyway.
    """
    height, width = mask.shape
    everything = slice(0, height), slice(0, width)
    if not mask.any():
        return everything
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1)
    side = max(round(extent * (1 + 2 * context)), smallest)
    if side * side > 0.5 * height * width:
        return everything

    def place(first: int, last: int, length: int) -> slice:
        start = int(np.clip(round((first + last + 1 - side) / 2), 0, max(length - side, 0)))
        return slice(start, min(start + side, length))

    return place(ys[0], ys[-1], height), place(xs[0], xs[-1], width)


def eight_bit(image: NDArray) -> NDArray[np.uint8]:
    """Image (H, W[, C]) of any number type -> RGB (H, W, 3) for looking at.

    Three or four channels of bytes are taken as colour; otherwise the first channel is shown grey, between its
    0.5th and 99.5th percentile.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype == np.uint8 and image.shape[-1] in (3, 4):
        return np.ascontiguousarray(image[..., :3])
    grey = np.nan_to_num(image[..., 0].astype(np.float32))
    low, high = np.percentile(grey, [0.5, 99.5])
    if high <= low:
        low, high = float(grey.min()), float(grey.max())
    grey = np.clip((grey - low) / max(high - low, 1e-9), 0, 1)
    return np.repeat((255 * grey + 0.5).astype(np.uint8)[..., None], 3, axis=-1)


def _runs(flags: NDArray) -> list[tuple[int, int]]:
    """Boolean (n,) -> [start, stop) of each run of True."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in steps.reshape(-1, 2)]
