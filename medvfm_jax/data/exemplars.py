"""New training pictures out of a few labelled ones: objects of one, changed at random, are laid into another."""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.data.augment import INSTANCE_OUTSIDE, LABEL_OUTSIDE, AugmentConfig, augment
from medvfm_jax.data.objects import How, object_map
from medvfm_jax.images.intensity import to_unit

BORDER = 1.0  # standard deviation in pixels over which an object passes into the picture around it
KEPT = 0.5  # chance of each object of the exemplar to be laid into the picture


def with_exemplar(
    rng: np.random.Generator,
    changes: AugmentConfig,
    picture: tuple[NDArray, NDArray, NDArray | None],
    exemplar: tuple[NDArray, NDArray, NDArray | None],
    wanted: NDArray,
    how: How,
) -> tuple[NDArray[np.float32], NDArray, NDArray | None]:
    """Lay objects of an exemplar into a picture.

    The exemplar is flipped, turned, zoomed, shifted, and made darker or lighter as a whole, so that its objects keep
    their places to each other, and laid with its middle on that of the picture; each object is then kept with
    probability ``KEPT``. Its intensities pass into those of the picture over ``BORDER`` pixels, its labels do not.

    Args:
        rng: for everything that is random.
        changes: of the exemplar; its affine change and its changes of intensity are always tried.
        picture: image (H, W, C), label map (H, W) and object numbers (H, W) or None.
        exemplar: the same of another picture, of any size; of another number of channels it becomes grey.
        wanted: classes (indices) that have objects.
        how: what an object is.

    Returns:
        Image in 0..1, label map, and object numbers if the picture has some; new objects have new numbers. The picture
        itself in 0..1 where no object came to lie in it.

    References:
        Feng, Zhu, Yu, Cheap Lunch for Medical Image Segmentation, https://arxiv.org/abs/2308.14133. Interpretation: of
        its exemplar-guided synthesis only the purpose is followed; how objects are changed and blended is chosen here.
    """
    image, label, instances = picture
    image = to_unit(image)
    always = dataclasses.replace(changes, affine=1.0, intensity=max(changes.intensity, 0.5))
    donor, (classes, numbers) = augment(
        rng,
        always,
        exemplar[0],
        (exemplar[1], exemplar[2]),
        longest=max(exemplar[0].shape[:2]),
        outside=(LABEL_OUTSIDE, INSTANCE_OUTSIDE),
    )
    classes = _laid(classes, label.shape, LABEL_OUTSIDE)
    numbers = None if numbers is None else _laid(numbers, label.shape, INSTANCE_OUTSIDE)
    objects = object_map(classes, numbers, wanted, how)
    present = np.unique(objects[objects > 0])
    kept = present[rng.uniform(size=len(present)) < KEPT]
    mask = np.isin(objects, kept)
    if not mask.any():
        return image, label, instances
    # Beyond a small exemplar's edge its edge goes on, or objects there would have a dark rim.
    donor = _laid(donor, label.shape, None)
    if donor.shape[-1] != image.shape[-1]:
        donor = np.broadcast_to(donor.mean(-1, keepdims=True), image.shape)
    share = ndimage.gaussian_filter(mask.astype(np.float32), BORDER)[..., None]
    mixed = (1 - share) * image + share * donor
    if instances is not None:
        own = objects + np.int32(instances.max(initial=0))
        instances = np.where(mask, own, instances)
    return mixed.astype(np.float32), np.where(mask, classes, label), instances


def _laid(array: NDArray, shape: tuple[int, ...], outside: int | None) -> NDArray:
    """Array (H, W, ...) cut or padded around its middle to a height and width; None repeats its edge."""
    if outside is None:
        for axis, (have, want) in enumerate(zip(array.shape, shape)):
            source, target = _overlap(have, want)
            places = np.arange(want) - target.start + source.start
            array = array.take(np.clip(places, 0, have - 1), axis)
        return array
    result = np.full((*shape, *array.shape[2:]), outside, array.dtype)
    source, target = zip(*(_overlap(have, want) for have, want in zip(array.shape, shape)))
    result[target] = array[source]
    return result


def _overlap(have: int, want: int) -> tuple[slice, slice]:
    size, first, start = min(have, want), max(0, (have - want) // 2), max(0, (want - have) // 2)
    return slice(first, first + size), slice(start, start + size)
