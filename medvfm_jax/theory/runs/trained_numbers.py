"""What is trained, as one vector: a model with an adapter, at its start or where a run left it, and labelled images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.adapters import of_task
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig, from_json
from medvfm_jax.theory.runs.pictures import spread
from medvfm_jax.train.task import make_overlap, prediction_loss, predictor
from medvfm_jax.train.training import Run, resolve
from medvfm_jax.types import Batch, Delta, Params, Prediction
from medvfm_jax.weights import artifacts


class TrainedNumbers(NamedTuple):
    """A model as a function of what is trained alone.

    Attributes:
        model: its name.
        data: name of the dataset.
        delta: (p,), at the start or as trained.
        paths: of its arrays, "part/module/name", and how many numbers each has, in order.
        params: the frozen ones.
        batches: of one image each.
        predict: (params, (p,), one image of a batch) -> Prediction.
        rate: (prediction, one image of a batch) -> the loss, ().
        start: (p,), what is trained before the first step.
        images: of the whole training part.
        patients: that these are of.
        asked: prompts and loss.
        unravel: (p,) -> the delta.
        dice: (params, (p,), one image of a batch) -> mean Dice of its objects, or of its classes without prompts, at
            the resolution of the logits; 1 where there is none and none is found.
    """

    model: str
    data: str
    delta: Array
    paths: tuple[tuple[str, int], ...]
    params: Params
    batches: tuple[Batch, ...]
    predict: Callable[[Params, Array, Batch], Prediction]
    rate: Callable[[Prediction, Batch], Array]
    start: Array
    images: int
    patients: int
    asked: str
    unravel: Callable[[Array], Delta]
    dice: Callable[[Params, Array, Batch], Array]


def open_start(config: AdaptConfig, cases: int, say: Callable[[str], None]) -> TrainedNumbers:
    """Before the first step of a run; raises MedvfmError for settings, data or weights that do not fit."""
    run = _resolved(config)
    return _of(run, run.assembled.delta, cases, say)


def open_trained(
    folder: Path, cases: int, say: Callable[[str], None], *, held: bool = False, **changes: Any
) -> TrainedNumbers:
    """Where a run of `adapt` ended.

    Args:
        folder: its run directory.
        cases: images of its training part at most.
        say: told what is done.
        held: images of its validation part instead.
        **changes: settings of the run that are others here.

    Raises:
        BadConfig: a run of another command, or data that changed since.
        MedvfmError: a run, data or weights that cannot be read.
    """
    record = run_directory.finished(folder)
    if "adapter" not in record or "rounds" in record or "recipe" in record:
        raise BadConfig(f"{folder} is no run of adapt; give one.")
    fixed = {"batch_size": 1, "augment": "none", "embeddings": "off", "resume": False, "accumulate": None}
    run = _resolved(from_json(AdaptConfig, {**record, **fixed, **changes}))
    then, now = record["resolved"]["data_sha256"], run.record["resolved"]["data_sha256"]
    if then != now:
        raise BadConfig(
            f"The data of {folder} changed since it was trained ({run.config.data}); restore them, or train again."
        )
    path = folder / run_directory.DELTA
    arrays, metadata = artifacts.load_delta(path)
    if artifacts.COMPRESSION in metadata:
        raise BadConfig(
            f"{folder} is compressed, and its numbers are no longer trained; give the run before."
        )
    artifacts.check_fingerprint(metadata, run.assembled.base.fingerprint)
    artifacts.check_arrays(arrays, run.assembled.delta, path)
    return _of(run, arrays, cases, say, held)


def restricted(opened: TrainedNumbers, keep: Callable[[str], bool]) -> TrainedNumbers:
    """The same as a function of some of its numbers; the others stay where they are.

    Args:
        opened: a model with its adapter.
        keep: path of an array -> whether it is looked at.

    Returns:
        The restricted function.

    Raises:
        BadConfig: no array is kept.
    """
    kept = np.concatenate([np.full(size, keep(path)) for path, size in opened.paths])
    if not kept.any():
        raise BadConfig(f"{opened.model} trains nothing of what was asked for.")
    where, whole = jnp.asarray(np.flatnonzero(kept)), opened.delta
    return opened._replace(
        delta=whole[where],
        start=opened.start[where],
        unravel=lambda numbers: opened.unravel(whole.at[where].set(numbers)),
        dice=lambda params, numbers, image: opened.dice(params, whole.at[where].set(numbers), image),
        paths=tuple((path, size) for path, size in opened.paths if keep(path)),
        predict=lambda params, numbers, image: opened.predict(params, whole.at[where].set(numbers), image),
    )


def _resolved(config: AdaptConfig) -> Run:
    with ProgressDisplay(title="analyze") as display:
        return resolve(config, display=display)


def _of(run: Run, delta: Delta, cases: int, say: Callable[[str], None], held: bool = False) -> TrainedNumbers:
    part, there = ("validation", run.data.val) if held else ("training", run.data.train)
    images = min(cases, len(there))
    if images < 1:
        other = "; look at those it was trained on (--no-held)" if held else ""
        raise BadConfig(f"The {part} part has no image that can be used{other}.")
    if images < cases:
        say(f"note: the {part} part has {images} images or slices, fewer than --cases {cases}")
    if held:
        batches = tuple(spread(run.data.validation().batches, images))
    else:
        loader = run.data.loader("none", (0, 1))
        batches = tuple(next(loader) for _ in range(images))
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, delta))
    start, _ = ravel_pytree(jax.tree.map(jnp.asarray, run.assembled.delta))
    if not flat.size:
        raise BadConfig(f"Nothing is trained by {run.config.adapter}; choose another --adapter.")
    leaves, _ = jax.tree_util.tree_flatten_with_path(delta)
    function, rate = predictor(run.assembled.adapted, cached=False), prediction_loss(run.assembled.objective)

    def of(numbers: Array, image: Batch) -> Delta:
        return unravel(numbers) if image.task is None else of_task(unravel(numbers), image.task)

    return TrainedNumbers(
        run.config.model,
        run.data.source.dataset.name,
        flat,
        tuple((jax.tree_util.keystr(path, simple=True, separator="/"), leaf.size) for path, leaf in leaves),
        run.assembled.base.params,
        tuple(jax.tree.map(lambda leaf: leaf[0], batch) for batch in batches),
        lambda params, numbers, image: function(params, of(numbers, image), image.image, image.prompts),
        lambda prediction, image: rate(prediction, image.target, image.weight)[0],
        start,
        len(run.data.train),
        len({run.data.source.dataset.case(example.case).patient for example in run.data.train}),
        f"prompts {run.assembled.prompt}, loss {run.assembled.objective}",
        unravel,
        _dice(run, unravel),
    )


def _dice(run: Run, unravel: Callable[[Array], Delta]) -> Callable[[Params, Array, Batch], Array]:
    overlap, semantic = make_overlap(run.assembled.adapted), run.assembled.prompt == "none"

    def dice(params: Params, numbers: Array, image: Batch) -> Array:
        counts = overlap(params, unravel(numbers), jax.tree.map(lambda leaf: leaf[None], image))
        both, found, real = (counts[name][0] for name in ("intersection", "predicted", "reference"))
        each = jnp.where(found + real > 0, 2 * both / jnp.maximum(found + real, 1), 1.0)
        weight = jnp.ones_like(each).at[0].set(0) if semantic else image.weight  # the background is no object
        return (each * weight).sum() / jnp.maximum(weight.sum(), 1)

    return dice
