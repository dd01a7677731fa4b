"""The rows of the table: each builds what a user would run, from random weights and made-up images.

Nothing is special about it: the functions are those of `segment` and `adapt`, compiled as they compile them.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax import systems
from medvfm_jax.adapters import adapt_model
from medvfm_jax.data import PromptConfig, examples, make_loader, make_phantom_dataset, open_dataset
from medvfm_jax.data.loader import Loader
from medvfm_jax.models import catalog
from medvfm_jax.models.model import Model
from medvfm_jax.plan.flops import training_flops
from medvfm_jax.settings.bench import RowName
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import make_step
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, Batch, ModelSpec, Params, Prompts
from medvfm_jax.weights.registry import model_of

MEASURES: Mapping[RowName, str] = {
    "encode": "one image to its embedding",
    "segment": "one image and one box to mask logits",
    "samed": "training step of LoRA and mask decoder, one box per image",
    "decoder": "training step of the mask decoder on cached embeddings, one box per image",
    "loader": "training batch with full augmentation, one thread, images decoded before",
}


class Row(NamedTuple):
    """call: does the work once and waits for it.  images: in one call.  flop: products and convolutions, or None."""

    call: Callable[[], Any]
    images: int
    flop: float | None


class Subject(NamedTuple):
    """A model with random weights."""

    model: Model
    params: Params

    @property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return self.model.spec


def subject(name: str, dtype: str) -> Subject:
    """The model without an adapter, with random weights from seed 0."""
    model = catalog.build(model_of(name), dtype=jnp.dtype(dtype))
    return Subject(model, jax.jit(model.init)(jax.random.key(0)))


def build(row: RowName, given: Subject, batch_size: int) -> Row:
    """The row's work, ready to be called; the first call compiles."""
    builders = {
        "encode": _encode,
        "segment": _segment,
        "samed": _samed,
        "decoder": _decoder,
        "loader": _loader,
    }
    return builders[row](given, batch_size)


def _encode(given: Subject, batch_size: int) -> Row:
    del batch_size  # one image after the other, as `segment` does
    image, encode = _image(given.spec), jax.jit(given.model.encode)
    flop = _forward_flop(given.model.encode, given.params, image)
    return Row(lambda: jax.block_until_ready(encode(given.params, image)), 1, flop)


def _segment(given: Subject, batch_size: int) -> Row:
    del batch_size
    image, apply, size = _image(given.spec), jax.jit(given.model.apply), given.spec.input_size
    points = np.array([[[0.25, 0.25], [0.75, 0.75]]], np.float32) * size
    box = Prompts(points, np.array([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], np.int32))
    flop = _forward_flop(given.model.apply, given.params, image, box)
    return Row(lambda: jax.block_until_ready(apply(given.params, image, box)), 1, flop)


def _samed(given: Subject, batch_size: int) -> Row:
    return _step(given, "samed", next(_batches(given.spec, batch_size)), cached=False)


def _decoder(given: Subject, batch_size: int) -> Row:
    batch, encode = next(_batches(given.spec, batch_size)), jax.jit(given.model.encode)
    embeddings = np.stack([encode(given.params, image) for image in batch.image])
    return _step(given, "decoder", batch._replace(image=embeddings), cached=True)


def _loader(given: Subject, batch_size: int) -> Row:
    batches = _batches(given.spec, batch_size, augment="full")
    return Row(lambda: next(batches), batch_size, None)


def _step(given: Subject, adapter: str, batch: Batch, *, cached: bool) -> Row:
    """An optimiser step as `adapt` makes it: on a CPU one image after the other."""
    adapted = adapt_model(systems.adapter(adapter, given.model), given.model)
    loss = make_loss(adapted, systems.SYSTEMS[adapter].objective[given.spec.task], cached=cached)
    optimizer = make_optimizer(make_schedule("constant", 1e-6, 1000, 0))
    images = len(batch.image)
    step = make_step(loss, optimizer, images if jax.default_backend() == "cpu" else 1)
    state = init_state(adapted.init(jax.random.key(1), given.params), optimizer, jax.random.key(2))
    flop = training_flops(loss, given.params, state.delta, batch, state.key).executed
    batch = jax.device_put(batch)

    def call() -> None:
        nonlocal state  # a step consumes its state
        state, metrics = step(given.params, state, batch)
        jax.block_until_ready((state, metrics))

    return Row(call, images, flop)


def _batches(spec: ModelSpec, batch_size: int, augment: str = "none") -> Loader:
    """Endless batches of made-up cells in the model's own size, decoded once, prepared when asked for."""
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
        size = max(spec.input_size, 32)
        dataset = open_dataset(str(make_phantom_dataset(Path(folder) / "cells", "cells", 8, size=size)))
        listed = examples(dataset, [case.id for case in dataset.cases], spec, "promptable")
    return make_loader(
        dataset,
        listed,
        spec,
        "promptable",
        batch_size=batch_size,
        seed=0,
        prompts=PromptConfig("box", 1),
        augment=augment,
        threads=0,
    )


def _image(spec: ModelSpec) -> Any:
    """An image (S, S, 3) as preprocessing leaves it, about."""
    return jnp.asarray(np.random.default_rng(0).uniform(size=spec.input_shape), jnp.float32)


def _forward_flop(function: Callable[..., Any], params: Params, *inputs: Any) -> float:
    """A forward pass is a training step in which nothing is trained."""
    return training_flops(
        lambda params, delta, *rest: (function(params, *rest), {}), params, {}, *inputs
    ).model
