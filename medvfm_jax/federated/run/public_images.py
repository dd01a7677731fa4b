"""Unlabelled images at the server, for algorithms that distil there (FedDF)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.images import Image, Query, make_prompts, plane, preprocess, read
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import volume_to_unit
from medvfm_jax.images.reading import SUFFIXES, suffix_of
from medvfm_jax.types import Batch, ModelSpec, Prompts


def public_batches(
    folder: Path, spec: ModelSpec, channels: Sequence[str], steps: int, size: int, seed: int
) -> list[Batch]:
    """Images of a folder -> ``steps`` batches of ``size``, without target and weight.

    Drawn at random by ``seed`` without repetition, or over and over where there are fewer; of a volume the middle
    slice.  Promptable models are asked for what is in a box around the whole picture, as there are no labels to take
    prompts from (an interpretation: FedDF classifies).  Raises BadFederation, BadImage.
    """
    if spec.rank == 3:
        raise BadFederation(
            f"Public data are looked at slice by slice, and {spec.name} sees volumes; choose an algorithm without "
            "--public-data."
        )
    if not folder.is_dir():
        raise BadFederation(f"--public-data {folder} is no folder; give one with unlabelled images.")
    visible = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    files = [p for p in visible if p.is_file() and suffix_of(p) in SUFFIXES]
    if not files:
        raise BadFederation(f"--public-data {folder} holds no image ({', '.join(SUFFIXES)}).")
    order = np.random.default_rng(seed).permutation(len(files))
    chosen = [files[order[i % len(files)]] for i in range(steps * size)]
    known = {path: _prepared(_picture(read(path), channels), spec) for path in set(chosen)}
    return [_batch([known[path] for path in chosen[i : i + size]]) for i in range(0, steps * size, size)]


def _picture(image: Image, channels: Sequence[str]) -> NDArray:
    if not image.is_volume:
        return image.array
    axis = slice_axis(image)
    return plane(volume_to_unit(image.array, tuple(channels)), axis, image.grid[axis] // 2)


def _prepared(picture: NDArray, spec: ModelSpec) -> tuple[NDArray, Prompts | None]:
    image, frame = preprocess(spec, picture)
    if spec.task == "semantic":
        return image, None
    height, width = picture.shape[:2]
    return image, make_prompts(frame, [Query(np.array([0, 0, width, height], np.float32))])


def _batch(some: Sequence[tuple[NDArray, Prompts | None]]) -> Batch:
    images = np.stack([image for image, _ in some])
    if some[0][1] is None:
        return Batch(images, None, None, None)
    points, labels = (np.stack([getattr(p, name) for _, p in some]) for name in ("points", "labels"))
    return Batch(images, Prompts(points, labels), None, None)
