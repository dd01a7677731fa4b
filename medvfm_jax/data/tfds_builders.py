"""TensorFlow Datasets builders without TensorFlow: ``mni152_tissue``, ``dsb2018``, ``nnunet_folder``.

For those whose input pipelines speak TFDS. The examples are the pictures and slices of ``data.examples``,
written once as array_record files with PNG images, and read with random access through
``builder.as_data_source()``, which grain takes directly. TensorFlow is never imported.

    source = as_source("mni152_tissue", split="train")
    source[0]  # {"image": (H, W, C) uint8, "label": (H, W, 1) uint8, "case": b"slab_012", "slice": 0, ...}

Example: image (H, W, 1 or 3) uint8 (volumes scaled over the whole volume, see ``images.intensity``), label
(H, W, 1) uint8 class index, 255 where nothing is known, case, patient, site, slice (-1 for pictures),
spacing (2,) height and width of a pixel in mm (0 if unknown); dsb2018 also has instances (H, W) uint16.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray
from PIL import Image as Pillow

from medvfm_jax.catalog import Catalog
from medvfm_jax.data import mni152
from medvfm_jax.data.dataset import open_dataset
from medvfm_jax.data.examples import Example, load_example
from medvfm_jax.data.records import BadDataset, Dataset
from medvfm_jax.data.splits import split
from medvfm_jax.data.store import DecodedCase, store_of
from medvfm_jax.fetch import cache_dir
from medvfm_jax.images.frame import three_channels
from medvfm_jax.images.intensity import to_unit

UNLABELLED = 255  # in "label": no score looks at this pixel
SPLITS = {"train": "train", "validation": "val", "test": "test"}


class _Folder(tfds.core.GeneratorBasedBuilder):
    """Examples of a dataset folder; the subclasses say which."""

    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True  # found by `builder` below, not by TFDS's global table
    WITH_INSTANCES = False

    def __init__(self, *, dataset: Dataset, seed: int, data_dir: Path):
        self._dataset, self._seed = dataset, seed
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        first = store_of(self._dataset)(self._dataset.cases[0].id).image
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 1 if first.shape[-1] == 1 else 3)),
            "label": tfds.features.Image(shape=(None, None, 1)),
            "case": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "site": tfds.features.Text(),
            "slice": tfds.features.Scalar(np.int32),
            "spacing": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
        if self.WITH_INSTANCES:  # beyond 8 bits, where TFDS would ask for OpenCV to read a PNG
            features["instances"] = tfds.features.Tensor(shape=(None, None), dtype=np.uint16, encoding="zlib")
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._dataset.name}: {self._dataset.note or 'medical images with label maps'}",
            features=tfds.features.FeaturesDict(features),
            license=self._dataset.licence,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(labels=dict(self._dataset.labels), split_seed=self._seed),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # the files are here already
        parts = split(self._dataset, seed=self._seed)
        return {name: self._generate_examples(getattr(parts, part)) for name, part in SPLITS.items()}

    def _generate_examples(self, cases: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for case_id in cases:
            decoded = store_of(self._dataset)(case_id)
            for example in _every_example(decoded):
                yield number, _record(self._dataset, decoded, example, with_instances=self.WITH_INSTANCES)
                number += 1


class Mni152Tissue(_Folder):
    """Axial slices of the MNI152 template with grey and white matter; see ``data.mni152``."""


class Dsb2018(_Folder):
    """Nuclei in microscopy images (2018 Data Science Bowl, BBBC038), with instance maps."""

    WITH_INSTANCES = True


class NnunetFolder(_Folder):
    """Slices, or pictures, of any nnU-Net dataset folder."""


BUILDERS: Catalog[type[_Folder]] = Catalog(
    "builder",
    {"mni152_tissue": Mni152Tissue, "dsb2018": Dsb2018, "nnunet_folder": NnunetFolder},
    BadDataset,
)


def builder(
    name: str,
    folder: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    offline: bool = False,
) -> tfds.core.DatasetBuilder:
    """Name of a builder -> TFDS builder; ``download_and_prepare()`` writes, ``as_data_source()`` reads.

    folder: where the data lie (images/, masks/, instances/ for dsb2018; nnU-Net's layout for nnunet_folder);
    mni152_tissue fetches its own. data_dir: where prepared files go, by default a folder in the cache, one
    per data folder and seed. seed: of the split into train, validation and test by patient. Raises BadDataset.
    """
    kind = BUILDERS[name]
    if name == mni152.NAME:
        folder = mni152.materialise(offline=offline)
    elif folder is None:
        raise BadDataset(f"The builder '{name}' does not fetch data; say in which folder they lie.")
    dataset = open_dataset(folder)
    if data_dir is None:
        data_dir = cache_dir() / "tfds" / f"{Path(folder).resolve().name}-seed{seed}"
    return kind(dataset=dataset, seed=seed, data_dir=Path(data_dir))


def as_source(name: str, folder: str | Path | None = None, *, split: str = "train", **options: Any) -> Any:
    """Prepare a dataset if needed -> random-access source of one split; options as for ``builder``."""
    made = builder(name, folder, **options)
    made.download_and_prepare()
    return made.as_data_source(split=split)


def _every_example(decoded: DecodedCase) -> list[Example]:
    name, axis = decoded.case.id, decoded.axis
    if axis is None:
        return [Example(name, name)]
    return [Example(f"{name}#{i:04d}", name, i, axis) for i in range(decoded.image.shape[axis])]


def _record(
    dataset: Dataset, decoded: DecodedCase, example: Example, *, with_instances: bool
) -> dict[str, Any]:
    image, label, instances, case = load_example(dataset, example)
    if dataset.classes > UNLABELLED:
        raise BadDataset(
            f"{dataset.folder} has {dataset.classes} classes; at most {UNLABELLED} can be stored."
        )
    if image.shape[-1] > 3:
        raise BadDataset(
            f"Case '{case.id}' in {dataset.folder} has {image.shape[-1]} channels; at most 3 can be stored in a "
            "picture, and none is left out unasked."
        )
    record: dict[str, Any] = {
        "image": _png(_eight_bits(image)),
        "label": _png(np.where(label < 0, UNLABELLED, label).astype(np.uint8)),
        "case": case.id,
        "patient": case.patient,
        "site": case.site,
        "slice": -1 if example.index is None else example.index,
        "spacing": _in_plane(decoded),
    }
    if with_instances:
        if instances is None:
            raise BadDataset(
                f"Case '{case.id}' in {dataset.folder} has no instance map; expected instances/."
            )
        record["instances"] = instances.astype(np.uint16)
    return record


def _in_plane(decoded: DecodedCase) -> NDArray[np.float32]:
    """(height, width) of a pixel in mm, zeros if unknown; slices are transposed (``images.plane``)."""
    if decoded.spacing is None:
        return np.zeros(2, np.float32)
    if decoded.axis is None:
        return np.asarray(decoded.spacing, np.float32)
    first, second = (s for axis, s in enumerate(decoded.spacing) if axis != decoded.axis)
    return np.array([second, first], np.float32)


def _eight_bits(image: NDArray) -> NDArray[np.uint8]:
    image = image if image.shape[-1] == 1 else three_channels(image)
    return image if image.dtype == np.uint8 else np.rint(to_unit(image) * 255).astype(np.uint8)


def _png(array: NDArray[np.uint8]) -> io.BytesIO:
    """The PNG file of (H, W) or (H, W, 1 or 3); TFDS stores such bytes unchanged."""
    buffer = io.BytesIO()
    Pillow.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
