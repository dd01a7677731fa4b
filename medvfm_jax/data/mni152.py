"""The built-in dataset: grey and white matter of the MNI152 template, cut into axial slabs.

One template brain, the average of 152: a demonstration that everything works, not evidence about patients.
The three maps lie inside the wheel of nilearn, which is fetched but not installed.
"""

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.records import BadDataset
from medvfm_jax.fetch import cache_dir, fetch_member

NAME = "mni152_tissue"
VERSION = 1  # of what is derived from the maps

DISTRIBUTION, RELEASE = "nilearn", "0.14.1"
_STEM = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
MEMBERS = {  # map -> (member, sha256, bytes)
    "t1": (_STEM.format("t1"), "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6", 1617531),
    "gm": (_STEM.format("gm"), "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed", 1965510),
    "wm": (_STEM.format("wm"), "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db", 1553010),
}
LICENCE = (
    "ICBM 152 Nonlinear 2009 template, (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal "
    "Neurological Institute, McGill University; free use with this notice"
)
NOTE = "One template brain cut into slabs: a demonstration, not evidence."

FIRST, LAST, THICKNESS, GAP = 12, 148, 6, 2  # axial slices of 1 mm; the gap keeps slabs apart


def materialise(*, offline: bool = False) -> Path:
    """Folder in the cache with the slabs as an nnU-Net v2 dataset, made when it is not there.

    Labels: 1 grey, 2 white matter, where the map says at least one half; each slab is a "patient".
    Raises ``fetch.FetchError`` if the maps cannot be had, BadDataset if the folder cannot be written.
    """
    folder = cache_dir() / "datasets" / f"{NAME}-{VERSION}"
    if (folder / "dataset.json").is_file():
        return folder
    paths = {
        key: fetch_member(DISTRIBUTION, RELEASE, member, digest, size, offline=offline)
        for key, (member, digest, size) in MEMBERS.items()
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder.parent))
        try:
            write_slabs(temporary, paths)
            try:
                os.rename(temporary, folder)
            except OSError:
                if not (folder / "dataset.json").is_file():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise BadDataset(f"{folder} cannot be written ({error.strerror or error}).") from error
    return folder


def tissue_labels(grey: NDArray, white: NDArray) -> NDArray[np.uint8]:
    """Probability maps (X, Y, Z) in 0..255 -> 0 background, 1 grey, 2 white matter."""
    labels = np.where(grey >= 128, 1, 0).astype(np.uint8)
    labels[(white >= 128) & (white >= grey)] = 2
    return labels


def slabs() -> list[tuple[int, int]]:
    """First axial index of every slab, and the first one behind it."""
    return [(z, z + THICKNESS) for z in range(FIRST, LAST - THICKNESS + 1, THICKNESS + GAP)]


def write_slabs(folder: Path, paths: dict[str, Path]) -> None:
    """Write the slabs of the three maps as an nnU-Net v2 dataset into an existing folder."""
    import nibabel  # takes half a second

    template = nibabel.load(paths["t1"])
    t1, grey, white = (np.asarray(nibabel.load(paths[key]).dataobj) for key in ("t1", "gm", "wm"))
    labels = tissue_labels(grey, white)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for low, high in slabs():
        affine = template.affine.copy()
        affine[:3, 3] += affine[:3, 2] * low
        for path, array in (
            (folder / "imagesTr" / f"slab_{low:03d}_0000.nii.gz", t1),
            (folder / "labelsTr" / f"slab_{low:03d}.nii.gz", labels),
        ):
            volume = nibabel.Nifti1Image(np.ascontiguousarray(array[:, :, low:high]), affine)
            path.write_bytes(gzip.compress(volume.to_bytes(), 6, mtime=0))
    info = {
        "name": NAME, "channel_names": {"0": "T1"}, "labels": {"background": 0, "grey matter": 1, "white matter": 2},
        "numTraining": len(slabs()), "file_ending": ".nii.gz", "licence": LICENCE, "note": NOTE,
        "reference": "Fonov et al., Unbiased average age-appropriate atlases for pediatric studies, NeuroImage 2011",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
