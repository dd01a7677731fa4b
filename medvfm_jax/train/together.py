"""Runs that differ by their seed alone as one program: their steps are a `vmap` over states and batches."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.gradient_start import with_gradient_start
from medvfm_jax.train.input_start import with_input_start
from medvfm_jax.train.loop import Hook, NonFiniteLoss, StepEnd
from medvfm_jax.train.step import make_step
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training import Run, Trained, cache_of, loader_of
from medvfm_jax.types import MedvfmError

FREE = {"seed", "out"}  # settings in which runs that train together may differ


class NotAlike(MedvfmError, ValueError):
    """Runs that cannot train as one program."""


def train_together(
    runs: Sequence[Run],
    hooks: Sequence[Sequence[Hook]] = (),
    *,
    say: Callable[[str], None] = lambda text: None,
) -> list[Trained | NonFiniteLoss]:
    """Take the steps of several runs at once; nothing is validated, and nothing can be resumed.

    Where the encoder is frozen, all take its embeddings from one cache.

    Args:
        runs: from ``resolve``, one device each, which differ in seed and folder alone.
        hooks: of each run, called after every step.
        say: told before anything is compiled.

    Returns:
        Of each run what it leaves, or the step at which its loss was not finite; the others are not held up by it.

    Raises:
        NotAlike: other settings, validation, a recipe, or other frozen parameters.
        MedvfmError: what hooks raise.
    """
    check_alike(runs)
    first = runs[0]
    cache = cache_of(first)
    objective = first.assembled.objective
    loss = make_loss(first.assembled.adapted, objective, cached=cache is not None, training=True)
    params, adapter = first.assembled.base.params, first.assembled.adapted.adapter.config
    loaders, states = [loader_of(run, cache) for run in runs], []
    for run, loader in zip(runs, loaders):
        state = run.start()
        delta = with_gradient_start(adapter, params, state.delta, loss, loader, run.accumulate)
        states.append(state._replace(delta=with_input_start(adapter, params, delta, loss, loader)))
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    every = jax.vmap(make_step(loss, first.optimizer, first.accumulate), (None, 0, 0))
    step = jax.jit(every, donate_argnums=1)
    say(f"compiling the training step of {len(runs)} runs ...")
    stopped: dict[int, NonFiniteLoss] = {}
    steps = first.config.steps
    for taken in range(1, steps + 1):
        started = time.perf_counter()
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(next(loader) for loader in loaders))
        state, found = step(params, state, batch)
        metrics = jax.device_get(found)
        seconds = (time.perf_counter() - started) / len(runs)
        for number in range(len(runs)):
            one = {name: float(value[number]) for name, value in metrics.items()}
            if number not in stopped and one.pop("finite") != 1.0:
                stopped[number] = NonFiniteLoss(f"The loss or its gradient is not finite at step {taken}.")
            if number not in stopped and hooks:
                end = StepEnd(taken, steps, None, None, one, first.config.batch_size, seconds, taken == steps)
                for hook in hooks[number]:
                    hook(end)
    last = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(len(runs))]
    return [
        stopped.get(i) or Trained(jax.device_get(one.delta), steps, None, one, EarlyStopping(0))
        for i, one in enumerate(last)
    ]


def check_alike(runs: Sequence[Run]) -> None:
    """Raise NotAlike for runs that cannot train as one program."""
    first = runs[0]
    for run in runs:
        now, then = vars(run.config), vars(first.config)
        if other := [name for name in now if name not in FREE and now[name] != then[name]]:
            raise NotAlike(
                f"Runs that train together differ in {', '.join(other)}; only their seeds may differ."
            )
        if run.goal is not None or run.config.validate_every or run.placement.parts > 1:
            raise NotAlike(
                "Runs with a recipe, validation or several devices train one after the other; set validate_every=0."
            )
        if run.config.embeddings == "device":
            raise NotAlike(
                "Runs that hold embeddings on the device train one by one; set embeddings=memory to train together."
            )
        if jax.default_backend() == "cpu" and touches_encoder(run.assembled.delta):
            raise NotAlike("The encoder trains too, and on a CPU such runs are not faster side by side.")
        if not same_parameters(run, first):
            raise NotAlike(
                "The frozen parameters of these runs start from their seeds; they train one by one."
            )


def same_parameters(run: Run, other: Run) -> bool:
    """Whether the frozen parameters are equal, number by number."""
    a, b = run.assembled.base.params, other.assembled.base.params

    def equal(x: Any, y: Any) -> bool:
        return x is y or (x.shape == y.shape and bool((np.asarray(x) == np.asarray(y)).all()))

    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )
