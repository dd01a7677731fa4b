"""Dataset folders of a few pixels, written file by file, so that a test can damage exactly one thing."""

import json

import nibabel
import numpy as np
from PIL import Image as Pillow

from medvfm_jax.types import ModelSpec

SPEC = ModelSpec("tiny", input_shape=32, embedding=(4, 4, 8), logits_shape=16)
AFFINE = np.array([[0.0, -1.5, 0, 12], [2.0, 0, 0, -7], [0, 0, 4.0, 3], [0, 0, 0, 1]])  # turned, anisotropic
LABELS = {"background": 0, "organ": 1, "tumour": 2}


def save_volume(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(array), affine), path)
    return path


def save_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.asarray(array)).save(path)
    return path


def write_info(folder, *, remove=(), **changes):
    """dataset.json of nnU-Net v2 for single-channel NIfTI, with changes."""
    info = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 2, "file_ending": ".nii.gz"}
    info = {key: value for key, value in (info | changes).items() if key not in remove}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def nnunet_folder(folder, cases=("a", "b"), *, shape=(5, 4, 3), channels=1, values=(0, 1, 2), **changes):
    """nnU-Net v2 folder; voxels of channel c of case i are 100 i + 10 c + index, labels cycle through values."""
    names = {str(c): f"T{c}" for c in range(channels)}
    write_info(folder, **({"channel_names": names} | changes))
    index = np.arange(np.prod(shape)).reshape(shape)
    for i, case in enumerate(cases):
        for c in range(channels):
            path = folder / "imagesTr" / f"{case}_{c:04d}.nii.gz"
            save_volume(path, (100 * i + 10 * c + index).astype(np.int16))
        labels = np.asarray(values, np.uint8)[index % len(values)]
        save_volume(folder / "labelsTr" / f"{case}.nii.gz", labels)
    return folder


def plain_folder(folder, masks, *, images=None):
    """images/ and masks/ of PNG files from {name: mask}; the images are grey ramps unless given."""
    for name, mask in masks.items():
        mask = np.asarray(mask, np.uint8)
        ramp = np.arange(mask.size, dtype=np.uint8).reshape(mask.shape)
        save_picture(folder / "images" / f"{name}.png", (images or {}).get(name, ramp))
        save_picture(folder / "masks" / f"{name}.png", mask)
    return folder


def assert_one_sentence(caught, *words):
    """The message is one line that ends as a sentence does, and contains the words that help the reader."""
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert len(text) < 500
    for word in words:
        assert str(word) in text
