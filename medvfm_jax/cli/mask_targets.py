"""Where `medvfm segment` writes, checked before any work: nothing is overwritten, nothing fails at the end."""

from collections.abc import Sequence
from pathlib import Path

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.targets import check_target
from medvfm_jax.images import Image
from medvfm_jax.images.reading import NIFTI, SUFFIXES, holds_volume, stem_of, suffix_of
from medvfm_jax.images.writing import MASK_SUFFIXES

_OF_VOLUMES = (*NIFTI, ".npy")


def targets_of(images: Sequence[Path], out: Path, logits: Path | None, *, overwrite: bool) -> list[Path]:
    """The mask file of each image, in order.

    ``out`` is a file for one image, a folder for several, or for one if it exists or has no suffix. Raises
    BadUsage for names that mean nothing, files that exist (unless ``overwrite``) or could not be written, and
    for an ``out`` that would replace an image.
    """
    _check_images(images)
    single = len(images) == 1
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


def _check_images(images: Sequence[Path]) -> None:
    if not images:
        raise BadUsage("there is no image to segment; give one or more files")
    for path in images:
        if not path.is_dir():
            continue
        names = sorted(p.name for p in path.iterdir())
        if not names:
            raise BadUsage(f"{path} is an empty folder; give image files, or a folder with a DICOM series")
        pictures = [suffix_of(Path(name)) for name in names if suffix_of(Path(name)) in SUFFIXES]
        if pictures:
            raise BadUsage(f"{path} is a folder of images; give its files, such as {path}/*{pictures[0]}")


def _mask_suffix(path: Path) -> str:
    return ".nii.gz" if holds_volume(path) else ".npy" if path.suffix.lower() == ".npy" else ".png"
