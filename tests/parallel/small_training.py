"""A tiny SAM with an adapter, a batch, and training it for a few steps on a mesh."""

from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from medvfm_jax import systems
from medvfm_jax.adapters import AdaptedModel, adapt_model
from medvfm_jax.models import catalog
from medvfm_jax.models.sam.prompt_free import to_semantic
from medvfm_jax.parallel import Rules, batch_shardings, param_shardings, shard_step, state_shardings
from medvfm_jax.train import TrainState, init_state, make_loss, make_step
from medvfm_jax.types import Batch, Params

CLASSES, BATCH = 3, 8


class Small(NamedTuple):
    adapted: AdaptedModel
    params: Params
    optimizer: optax.GradientTransformation
    state: TrainState


def small(adapter: str) -> Small:
    """Prompt-free SAM of 32 x 32 pixels, blocks stacked (half as much to compile), with AdamW."""
    model = catalog.build("sam-tiny-test", image_size=32, scan_blocks=True)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)
    model, params = to_semantic(model, params, CLASSES)
    adapted = adapt_model(systems.adapter(adapter, model), model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    delta = adapted.init(jax.random.key(1), params)
    return Small(adapted, params, optimizer, init_state(delta, optimizer, jax.random.key(2)))


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    target = rng.integers(-1, CLASSES, (BATCH, 8, 8)).astype(np.int32)
    return Batch(image, None, target, np.array([1] * (BATCH - 1) + [0], np.float32))


def train(start: Small, mesh: Mesh, rules: Rules, steps: int = 2, accumulate: int = 1) -> tuple:
    """Train on a mesh -> (weights as they were placed, final state, loss of every step)."""
    shardings = (
        param_shardings(rules, mesh, start.params),
        state_shardings(rules, mesh, start.state, start.optimizer),
        batch_shardings(mesh, batch()),
    )
    loss = make_loss(start.adapted, "samed")
    step = shard_step(make_step(loss, start.optimizer, accumulate), *shardings)
    params = jax.device_put(start.params, shardings[0])
    state = jax.device_put(init_state(start.state.delta, start.optimizer, start.state.key), shardings[1])
    losses = []
    for i in range(steps):
        state, metrics = step(params, state, batch(i))
        losses.append(float(metrics["loss"]))
    # JAX may have let the program go: its table is shared by all that a process compiles
    assert step._cache_size() <= 1, "the step was traced again"
    return params, state, losses
