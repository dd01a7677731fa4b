"""What both frameworks adapt to: LoRA factors, images with one ellipse each, boxes, masks."""

import zlib
from typing import NamedTuple

import numpy as np

RANK = 4
SIDE = 256


class Examples(NamedTuple):
    """images (n, S, S, 3) in [0, 1]; boxes (n, 4) as x0 y0 x1 y1, S pixels; masks (n, h, w) int32."""

    images: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


def factors(path: str, dim: int) -> dict[str, np.ndarray]:
    """LoRA factors of one qkv layer, the same in every process; b is not zero, so all gradients count."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    drawn = {}
    for part in "qv":
        drawn[f"a_{part}"] = rng.uniform(-(dim**-0.5), dim**-0.5, size=(dim, RANK)).astype(np.float32)
        drawn[f"b_{part}"] = (0.02 * rng.standard_normal((RANK, dim))).astype(np.float32)
    return drawn


def examples(n: int, size: int, mask_size: int) -> Examples:
    """n noisy images with a bright ellipse, its bounding box with a margin, its mask."""
    rng = np.random.default_rng(7)
    images, boxes, masks = [], [], []
    for _ in range(n):
        centre, radii = rng.uniform(0.35, 0.65, size=2), rng.uniform(0.1, 0.25, size=2)
        margin = radii + 0.03
        images.append(np.where(_inside(size, centre, radii)[..., None], 0.6, 0.3) + _texture(rng, size))
        boxes.append(np.concatenate([centre - margin, centre + margin]) * size)
        masks.append(_inside(mask_size, centre, radii))
    clipped = np.clip(images, 0, 1).astype(np.float32)
    return Examples(clipped, np.round(boxes).astype(np.float32), np.array(masks, np.int32))


def _inside(size: int, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    axis = (np.arange(size) + 0.5) / size
    x, y = (axis[None, :] - centre[0]) / radii[0], (axis[:, None] - centre[1]) / radii[1]
    return x**2 + y**2 <= 1


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = rng.normal(size=(16, 16, 3)).repeat(size // 16, axis=0).repeat(size // 16, axis=1)
    return 0.05 * coarse + 0.05 * rng.normal(size=(size, size, 3))


def flat(gradients: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """{path: {name: array}} -> one vector, sorted by path and name."""
    return np.concatenate(
        [
            np.asarray(arrays[name]).ravel()
            for _, arrays in sorted(gradients.items())
            for name in sorted(arrays)
        ]
    )
