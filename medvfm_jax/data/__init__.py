"""Datasets: folders of labelled images, splits by patient, two-dimensional examples, batches."""

from typing import TYPE_CHECKING

from medvfm_jax import lazy
from medvfm_jax.data.dataset import BUILTIN, open_dataset, read_case
from medvfm_jax.data.examples import Example, LoadedExample, NoExamples, example_image, examples, load_example
from medvfm_jax.data.records import (
    BadCase,
    BadDataset,
    Case,
    Dataset,
    GeometryMismatch,
    LoadedCase,
    UnknownLabel,
)
from medvfm_jax.data.splits import BadSplit, Split, nnunet_folds, split
from medvfm_jax.data.targets import PromptConfig

if TYPE_CHECKING:
    from medvfm_jax.data.augment import AugmentConfig, usual_augmentation
    from medvfm_jax.data.loader import BadLoaderState, Loader, make_batch, make_loader
    from medvfm_jax.data.phantoms import make_phantom_dataset

# With grain and scipy.ndimage, which take a second that a single picture need not wait for.
_LAZY = {
    **dict.fromkeys(("AugmentConfig", "usual_augmentation"), "medvfm_jax.data.augment"),
    **dict.fromkeys(("BadLoaderState", "Loader", "make_batch", "make_loader"), "medvfm_jax.data.loader"),
    "make_phantom_dataset": "medvfm_jax.data.phantoms",
}
__getattr__, __dir__ = lazy.attributes(__name__, _LAZY)

__all__ = [
    "BUILTIN",
    "AugmentConfig",
    "BadCase",
    "BadDataset",
    "BadLoaderState",
    "BadSplit",
    "Case",
    "Dataset",
    "Example",
    "GeometryMismatch",
    "LoadedCase",
    "LoadedExample",
    "Loader",
    "NoExamples",
    "PromptConfig",
    "Split",
    "UnknownLabel",
    "example_image",
    "examples",
    "load_example",
    "make_batch",
    "make_loader",
    "make_phantom_dataset",
    "nnunet_folds",
    "open_dataset",
    "read_case",
    "split",
    "usual_augmentation",
]
