"""Where `medvfm segment` writes, checked before any work: nothing is overwritten, nothing fails at the end."""

from collections.abc import Sequence
from pathlib import Path

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.targets import check_target
from medvfm_jax.images import Image
from medvfm_jax.images.reading import NIFTI, holds_volume, stem_of, suffix_of
from medvfm_jax.images.writing import MASK_SUFFIXES

_OF_VOLUMES = (*NIFTI, ".npy")


def targets_of(
    images: Sequence[Path], out: Path, logits: Path | None, *, overwrite: bool, folder: bool = False
) -> list[Path]:
    """The mask file of each image, in order.

    ``out`` is a file for one image, a folder for several, or for one if it exists or has no suffix. folder: the images
    were found in one, so that ``out`` is one however many there are. Raises
    BadUsage for names that mean nothing, files that exist (unless ``overwrite``) or could not be written, and
    for an ``out`` that would replace an image.
    """
    if not images:
        raise BadUsage("there is no image to segment; give one or more files")
    single = len(images) == 1 and not folder
    if logits is not None and not (single and logits.suffix.lower() == ".npz"):
        raise BadUsage("--logits takes a file ending in .npz and works with one image")
    named = out.name.lower().endswith(MASK_SUFFIXES) and not out.is_dir()
    if single and named:
        targets = [out]
    elif single and out.suffix and not out.is_dir():
        raise BadUsage(f"--out {out}: masks are written as {', '.join(MASK_SUFFIXES)}")
    elif named:
        raise BadUsage(f"--out {out} names one mask; several need a folder, a name without {suffix_of(out)}")
    else:
        targets = [out / f"{stem_of(path)}{_mask_suffix(path)}" for path in images]
    twice = [path for path in targets if targets.count(path) > 1]
    if twice:
        raise BadUsage(f"two images would be written to {twice[0]}; segment them one by one")
    written = [*targets, *([logits] if logits is not None else [])]
    same = [path for path in written if path.resolve() in {image.resolve() for image in images}]
    if same:
        raise BadUsage(f"{same[0]} is an image to segment; choose another --out")
    for path in written:
        check_target(path, overwrite)
    return targets


def check_fits(target: Path, image: Image) -> None:
    """Raise BadUsage if the file cannot hold the mask of this image."""
    if image.is_volume and suffix_of(target) not in _OF_VOLUMES:
        raise BadUsage(
            f"{image.path} is a volume and {target} holds a picture; give --out a name ending in .nii.gz"
        )


def _mask_suffix(path: Path) -> str:
    return ".nii.gz" if holds_volume(path) else ".npy" if path.suffix.lower() == ".npy" else ".png"
