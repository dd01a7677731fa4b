"""Batches for training and validation: deterministic, checkpointable, of static shape (grain)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.annotated_labels import marked, unannotated
from medvfm_jax.data.augment import (
    AUGMENTATIONS,
    INSTANCE_OUTSIDE,
    LABEL_OUTSIDE,
    NONE,
    AugmentConfig,
    augment,
    augment_slab,
)
from medvfm_jax.data.examples import (
    Example,
    NoExamples,
    Task,
    check_objects,
    class_lookup,
    example_image,
    load_example,
    random_corner,
)
from medvfm_jax.data.exemplars import with_exemplar
from medvfm_jax.data.objects import object_map, objects_of
from medvfm_jax.data.records import Dataset
from medvfm_jax.data.targets import (
    PromptConfig,
    instance_target,
    promptable_target,
    semantic_target,
    volume_target,
)
from medvfm_jax.images import frame_of, preprocess
from medvfm_jax.images.tiles import levelled, part
from medvfm_jax.types import ABSENT, IGNORE, Batch, MedvfmError, ModelSpec, Prompts

__all__ = ["BadLoaderState", "Loader", "example_image", "load_example", "make_batch", "make_loader"]

ImageFn = Callable[[Example], NDArray]


class BadLoaderState(MedvfmError, ValueError):
    """A position that belongs to other data, another seed or another batch size."""


class Loader(Iterator[Batch]):
    """Iterator of ``Batch``; ``get_state()`` before a batch and ``set_state`` give that batch again, bit by bit.

    Also after a restart, on another machine, or with another number of threads.
    """

    def __init__(self, batches: Any, identity: str, length: int | None):
        self._iterator, self._identity, self._length = iter(batches), identity, length

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """The next batch, numpy; StopIteration after the last epoch."""
        return next(self._iterator)

    def __len__(self) -> int:
        """Batches in all epochs together; TypeError if they never end."""
        if self._length is None:
            raise TypeError("This loader never ends.")
        return self._length

    def get_state(self) -> dict[str, Any]:
        """Position, as JSON can hold it."""
        return {"position": self._iterator.get_state(), "data": self._identity}

    def set_state(self, state: dict[str, Any] | bytes) -> None:
        """Return to a position. Raises BadLoaderState if it was taken over other examples or settings."""
        try:
            state = json.loads(state) if isinstance(state, bytes | str) else state
            identity, position = state["data"], state["position"]
        except (ValueError, TypeError, KeyError) as error:
            raise BadLoaderState("The position of the loader is damaged; start the run again.") from error
        if identity != self._identity:
            raise BadLoaderState(
                "The checkpoint was made with other training examples or settings of the loader; "
                "continue with the data and settings of that run, or start a new one."
            )
        try:
            self._iterator.set_state(position)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise BadLoaderState("The position of the loader is damaged; start the run again.") from error


def make_loader(
    dataset: Dataset,
    examples: Sequence[Example],
    spec: ModelSpec,
    task: Task,
    *,
    batch_size: int,
    seed: int,
    prompts: PromptConfig | None = None,
    augment: bool | str | AugmentConfig = False,
    labels: Sequence[str] | None = None,
    shuffle: bool = True,
    epochs: int | None = None,
    image_fn: ImageFn | None = None,
    threads: int = 1,
    synthesis: float = 0.0,
    share: tuple[int, int] = (0, 1),
) -> Loader:
    """Iterator of batches (numpy) over examples.

    Each epoch has its own order; the random numbers of an example in an epoch depend on ``seed`` and its position
    alone.

    Args:
        dataset: the dataset.
        examples: what to draw from.
        spec: input and output shapes of the model.
        task: "semantic" or "promptable".
        batch_size: examples per batch, of all shares together.
        seed: of order, augmentation and prompts, at least 0.
        prompts: how prompts are simulated; default ``PromptConfig()``.
        augment: True or "full", "upright", "flips", False or "none", or a config.
        labels: names of the classes that count as foreground; default all.
        shuffle: whether the order is random.
        epochs: None: endless; otherwise a last incomplete batch is padded with examples of weight 0.
        image_fn: gives ``Batch.image`` of an example instead of preprocessing, such as a cached embedding; excludes
            augmentation.
        threads: that prepare batches ahead; 0: each is prepared when asked for.
        synthesis: share of the pictures that objects of another example are laid into; see ``data.exemplars``.
        share: (i, n): the i-th of n equal parts of every batch, for n processes; together they are the batch of (0,
            1).

    Returns:
        A Loader whose batches have the shapes of ``types.Batch``.

    Raises:
        NoExamples: no examples, a batch size or a number of epochs below 1, an unknown task, or no objects for a
            model that separates them.
        BadLoaderState: a negative seed or number of threads, a share that does not fit, or ``image_fn`` with
            augmentation.
        UnknownAugmentation: a name that does not exist.
        BadCase: ``labels`` names an unknown class; while iterating, a case cannot be read.
    """
    config = _augmentation(augment)
    if not examples:
        raise NoExamples(f"There are no examples of {dataset.folder} to load.")
    if batch_size < 1:
        raise NoExamples(f"A batch size of {batch_size} is not positive.")
    if epochs is not None and epochs < 1:
        raise NoExamples(f"{epochs} epochs give no batch; expected 1 or more, or None for an endless loader.")
    if seed < 0 or threads < 0:
        raise BadLoaderState(f"A loader needs seed >= 0 and threads >= 0; got {seed} and {threads}.")
    part, parts = share
    if not 0 <= part < parts or batch_size % parts or (parts > 1 and epochs is not None):
        raise BadLoaderState(
            f"Batches of {batch_size} cannot be shared by {parts} loaders, of which this is number {part}; choose a "
            "batch size that is a multiple, and no number of epochs."
        )
    if image_fn is not None and (config != NONE or synthesis):
        raise BadLoaderState("Images that are replaced cannot be augmented; switch one of the two off.")
    if not 0 <= synthesis <= 1 or (synthesis and spec.rank == 3):
        raise BadLoaderState(
            f"Objects of others are laid into a share between 0 and 1 of pictures or slices; got {synthesis} for "
            f"{spec.name}, which sees {spec.rank} dimensions."
        )
    make = _Maker(
        dataset, tuple(examples), spec, task, prompts or PromptConfig(), config, labels, image_fn, synthesis
    )
    source = grain.MapDataset.source(range(len(examples))).seed(seed)
    if shuffle:
        source = source.shuffle()
    if epochs != 1:
        # grain's own endless repetition overflows when batches of one are counted; 2^52 examples are never reached.
        source = source.repeat(max(2, (1 << 52) // len(examples)) if epochs is None else epochs)
    source, size = source.random_map(make)[part::parts], batch_size // parts
    batches = source.batch(size, drop_remainder=False, batch_fn=lambda items: _stack(items, size))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    length = None if epochs is None else -(-len(examples) * epochs // batch_size)
    words = [dataset.name, task, batch_size, seed, shuffle, epochs, make.prompts, config, labels]
    words += [make.how] if make.how == "components" else []
    words += [("synthesis", synthesis)] if synthesis else []
    words += (
        [sorted((site, sorted(names)) for site, names in dataset.annotated.items())]
        if dataset.annotated
        else []
    )
    words += [sorted(dataset.tasks.items())] if dataset.tasks else []
    identity = hashlib.sha256(repr((words, [e.id for e in examples])).encode()).hexdigest()[:16]
    return Loader(batches.to_iter_dataset(options), identity, length)


def make_batch(
    dataset: Dataset,
    examples: Sequence[Example],
    spec: ModelSpec,
    task: Task,
    *,
    seed: int = 0,
    prompts: PromptConfig | None = None,
    labels: Sequence[str] | None = None,
) -> Batch:
    """One batch of exactly these examples, without augmentation.

    Args:
        dataset: the dataset.
        examples: the B examples, at least one.
        spec: input and output shapes of the model.
        task: "semantic" or "promptable".
        seed: of the prompts.
        prompts: how they are simulated; default ``PromptConfig()``.
        labels: names of the classes that count as foreground; default all.

    Returns:
        A Batch of numpy arrays, see ``types.Batch``.

    Raises:
        NoExamples: an unknown task, or no objects for a model that separates them.
        BadCase: a case cannot be read, or ``labels`` names an unknown class.
    """
    make = _Maker(dataset, tuple(examples), spec, task, prompts or PromptConfig(), NONE, labels, None)
    return _stack([make(i, np.random.default_rng([seed, i])) for i in range(len(examples))], len(examples))


class _Maker:
    """(index, generator) -> one un-batched ``Batch``."""

    def __init__(
        self,
        dataset: Dataset,
        examples: tuple[Example, ...],
        spec: ModelSpec,
        task: Task,
        prompts: PromptConfig,
        config: AugmentConfig,
        labels: Sequence[str] | None,
        image_fn: ImageFn | None,
        synthesis: float = 0.0,
    ):
        if task not in ("semantic", "promptable"):
            raise NoExamples(f"There is no task '{task}'; choose from semantic, promptable.")
        self.dataset, self.examples, self.spec, self.task = dataset, examples, spec, task
        self.prompts, self.config, self.image_fn = prompts, config, image_fn
        chosen = class_lookup(dataset, labels)
        self.lookup = np.array([chosen.get(name, 0) for name in dataset.labels], np.int32)
        self.wanted = np.array([i for i, output in enumerate(self.lookup) if output > 0])
        self.synthesis = synthesis
        self.how = objects_of(dataset) if task == "promptable" or spec.distance_map else None
        check_objects(dataset, spec)

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        """Load, augment, preprocess, simulate prompts."""
        example = self.examples[index]
        batch = self._made(example, index, rng)
        if not self.dataset.tasks:
            return batch
        return batch._replace(task=np.int32(self.dataset.tasks[self.dataset.case(example.case).site]))

    def _made(self, example: Example, index: int, rng: np.random.Generator) -> Batch:
        image, label, instances, _ = load_example(self.dataset, example, rng)
        if self.synthesis and rng.uniform() < self.synthesis and len(self.examples) > 1:
            image, label, instances = self._with_another(rng, index, (image, label, instances))
        tile, longest, limits = self.spec.tile, self.spec.input_size, None
        if tile is not None:
            # Turned and zoomed pixels come from around the tile, not from beyond its border.
            surrounded = tile if example.corner is not None else 2 * tile
            image, limits, longest = levelled(self.spec, image), (0.0, 1.0), surrounded
            image, label, instances = _part(rng, (image, label, instances), surrounded, example.corner)
        if self.config != NONE:
            change = augment_slab if self.spec.rank == 3 else augment
            image, (label, instances) = change(
                rng, self.config, image, (label, instances),
                longest=longest, outside=(LABEL_OUTSIDE, INSTANCE_OUTSIDE),
            )  # fmt: skip
        if tile is not None and example.corner is None:
            image, label, instances = _part(rng, (image, label, instances), tile, None)
        if self.image_fn is None:
            array, frame = preprocess(self.spec, image, limits)
        else:
            array, frame = np.asarray(self.image_fn(example)), frame_of(self.spec, *label.shape)
        if self.task == "semantic" and not self.spec.distance_map:
            target = semantic_target(frame, label, self.lookup)
            return Batch(array, None, marked(target, self._unannotated(example)), np.float32(1))
        objects = object_map(label, instances, self.wanted, self.how)
        if self.task == "semantic":
            return Batch(array, None, instance_target(frame, label, objects, self.lookup), np.float32(1))
        target_of = volume_target if self.spec.rank == 3 else promptable_target
        return Batch(array, *target_of(rng, frame, label, objects, self.prompts))

    def _unannotated(self, example: Example) -> NDArray:
        """Outputs of which the case's site says nothing."""
        outputs = self.lookup[unannotated(self.dataset, self.dataset.case(example.case))]
        return outputs[outputs > 0]

    def _with_another(
        self, rng: np.random.Generator, index: int, picture: tuple[NDArray, NDArray, NDArray | None]
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        """A picture with objects of another example, which is changed as this one will be."""
        other = self.examples[(index + int(rng.integers(1, len(self.examples)))) % len(self.examples)]
        exemplar = load_example(self.dataset, other, rng)[:3]
        how = self.how or objects_of(self.dataset)
        return with_exemplar(rng, self.config, picture, exemplar, self.wanted, how)


def _part(
    rng: np.random.Generator, arrays: tuple[NDArray | None, ...], side: int, corner: tuple[int, ...] | None
) -> list[NDArray | None]:
    """Of a picture, its label map and its objects the square at ``corner``, or one at random; see ``random_corner``."""
    if corner is None:
        corner = random_corner(rng, arrays[1][None], (1, side, side))[1:]
    return [None if array is None else part(array, corner, side) for array in arrays]


def _stack(items: Sequence[Batch], size: int) -> Batch:
    """Un-batched examples -> Batch of exactly ``size``, the missing ones blank and of weight 0."""
    items = [*items, *[_blank(items[0])] * (size - len(items))]
    image, prompts, target, weight, task = zip(*items)
    if prompts[0] is not None:
        points, labels, _ = zip(*prompts)
        stacked = Prompts(np.stack(points), np.stack(labels), None)
    else:
        stacked = None
    tasks = None if task[0] is None else np.stack(task)
    return Batch(np.stack(image), stacked, np.stack(target), np.stack(weight), tasks)


def _blank(like: Batch) -> Batch:
    prompts = like.prompts
    if prompts is not None:
        prompts = Prompts(np.zeros_like(prompts.points), np.full_like(prompts.labels, ABSENT), None)
    blank, weight = np.full_like(like.target, IGNORE), np.zeros_like(like.weight)
    return Batch(np.zeros_like(like.image), prompts, blank, weight, like.task)


def _augmentation(wanted: bool | str | AugmentConfig) -> AugmentConfig:
    if isinstance(wanted, AugmentConfig):
        return wanted
    name = ("none", "full")[wanted] if isinstance(wanted, bool) else wanted
    return AUGMENTATIONS[name]
