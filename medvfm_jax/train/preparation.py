"""How the volumes of a run are prepared: chosen from settings and training data, stored, and read back."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvfm_jax.data import Dataset
from medvfm_jax.data.volume_statistics import volume_statistics
from medvfm_jax.images.intensity import is_hounsfield
from medvfm_jax.images.preparation import Preparation, of_record
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.settings.groups import TrainingConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights.artifacts import BadDelta

PREPARATION = "preparation"  # in the metadata of a delta


def prepared(
    dataset: Dataset,
    training: Iterable[str],
    config: TrainingConfig,
    entry: ModelEntry,
    intensity: str = "usual",
) -> Dataset:
    """The dataset with its volumes prepared as the settings say.

    training: names of the training volumes, from which a median spacing and the range of CT are taken.
    intensity: "usual" or "nnunet", see ``AdaptConfig``.
    Raises BadConfig for a model that sees slices, and for a median spacing of volumes that have none.
    """
    if not config.spacing and intensity == "usual":
        return dataset
    option = "--spacing" if config.spacing else "--intensity"
    if "window" not in entry.options:
        raise BadConfig(
            f"Model '{config.model}' sees pictures and slices, which have a size of their own; leave out {option}, or "
            "take a model of patches, like unet-3d."
        )
    if dataset.dimension == 2:
        raise BadConfig(f"{dataset.folder} has pictures; {option} is about volumes.")
    spacing = config.target_spacing()
    if spacing is not None and intensity == "usual":
        return replace(dataset, preparation=Preparation(spacing, None))
    found = volume_statistics(dataset, training)
    if config.spacing and spacing is None:
        if found.spacing is None:
            raise BadConfig(
                f"No training volume of {dataset.folder} says how large its voxels are; leave out --spacing, or save "
                "the volumes as NIfTI with their spacing."
            )
        spacing = found.spacing
    scale = None
    if intensity == "nnunet":
        names = dataset.channel_names or ("",) * len(found.ranges)
        scale = tuple(
            range_ if is_hounsfield(name) else None for name, range_ in zip(names, found.ranges, strict=True)
        )
    return replace(dataset, preparation=Preparation(spacing, scale))


def recorded_preparation(dataset: Dataset) -> dict[str, Any]:
    """What a run stores of the preparation of its volumes; nothing where there is none."""
    record = dataset.preparation.record()
    return {} if record is None else {PREPARATION: record}


def stored_preparation(metadata: Mapping[str, Any], spec: ModelSpec, delta: Path) -> Preparation:
    """The preparation in the metadata of a delta; raises BadDelta for one that means nothing to the model."""
    record = metadata.get(PREPARATION)
    try:
        found = of_record(record)
        slices = spec.resize != "none"
        if found.spacing is not None and slices:
            raise ValueError("slices are not resampled")
        channels = max(1, len(metadata.get("channel_names", ()))) if slices else spec.input_shape[-1]
        if found.intensity is not None and len(found.intensity) != channels:
            raise ValueError("another number of channels")
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadDelta(
            f"{delta}: its preparation of volumes is {record!r:.80}, which means nothing to {spec.name}; use the file "
            "that adapt wrote."
        ) from error
    return found


def check_same_scale(trained: tuple[str, ...], given: tuple[str, ...], where: Path) -> None:
    """Raise BadConfig if a channel is Hounsfield units in one of training and prediction, and not in the other."""
    for number, (ours, theirs) in enumerate(zip(trained, given)):
        if is_hounsfield(ours) != is_hounsfield(theirs):
            raise BadConfig(
                f"The run was trained with channel {number} named '{ours}', and {where} names it '{theirs}': "
                "intensities of CT and of other images are scaled differently. Rename the channel in dataset.json if "
                "it is the same kind of image."
            )
