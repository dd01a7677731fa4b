"""The training loop: fetch, step, tell the hooks. It knows nothing about models or images."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from medvfm_jax.printable import counted
from medvfm_jax.train.interruption import deferred
from medvfm_jax.train.state import State
from medvfm_jax.types import MedvfmError


class NonFiniteLoss(MedvfmError, ArithmeticError):
    """The loss or its gradient became NaN or infinite."""


class LoaderExhausted(MedvfmError):
    """The loader ended before the planned number of steps."""


class Loader(Protocol):
    """An iterator of batches whose position can be stored and restored."""

    def __next__(self) -> Any:
        """Next batch; every leaf has a leading batch axis."""
        ...

    def get_state(self) -> Any:
        """Position, as bytes or as anything JSON can hold."""
        ...

    def set_state(self, state: Any) -> None:
        """Return to a position."""
        ...


class MappedLoader:
    """A loader with a function applied to each batch; its position is that of the inner one."""

    def __init__(self, loader: Loader, function: Callable[[Any], Any]):
        self._loader, self._function = loader, function

    def __next__(self) -> Any:
        """The next batch of the inner loader, changed."""
        return self._function(next(self._loader))

    def get_state(self) -> Any:
        """Position of the inner loader."""
        return self._loader.get_state()

    def set_state(self, state: Any) -> None:
        """Return to a position."""
        self._loader.set_state(state)


class StepEnd(NamedTuple):
    """What a hook sees after a step.

    step: steps taken so far; steps: planned. loader_state: position after this step's batch.
    metrics: numbers on the host. examples, seconds: of this step; None where a display shall not show times. last:
    nothing follows.
    """

    step: int
    steps: int
    state: State
    loader_state: Any
    metrics: dict[str, float]
    examples: int
    seconds: float | None
    last: bool


Hook = Callable[[StepEnd], bool | None]  # True ends the training after this step


def fit(
    step: Callable[[State, Any], tuple[State, dict[str, Any]]],
    state: State,
    loader: Loader,
    hooks: Sequence[Hook] = (),
    *,
    steps: int,
    agree: Callable[[bool], bool] = bool,
) -> State:
    """Train until ``state.step`` is ``steps`` or a hook says stop; returns the last state.

    step: ``(state, batch) -> (state, metrics)``, for example ``functools.partial(make_step(...), params)``.
    agree: where several processes train together, whether any of them was asked to end; then all do.
    hooks: called after each step in order; once one has asked to stop, those after it see ``last=True``.
    Raises NonFiniteLoss naming the step, LoaderExhausted, KeyboardInterrupt (after SIGTERM its kind Terminated) after
    the step in progress
    (the hooks then saw ``last=True``, so a checkpoint was written).
    """
    taken = int(state.step)
    batches = _with_positions(loader)
    with deferred() as interrupted:
        following = next(batches, None) if taken < steps else None
        while taken < steps:
            if following is None:
                raise LoaderExhausted(
                    f"The data ended after {taken} of {counted(steps, 'step')}; let the loader repeat or take fewer."
                )
            (batch, loader_state), start = following, time.perf_counter()
            state, on_device = step(state, batch)
            # The device works while the host prepares the next batch; only then is the result waited for.
            following = next(batches, None) if taken + 1 < steps else None
            metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
            taken += 1
            asked_to_end = agree(interrupted())  # asked once: what comes later is for the next step
            _refuse_non_finite(metrics, taken)
            end = StepEnd(
                taken, steps, state, loader_state, metrics, _batch_size(batch),
                time.perf_counter() - start, taken == steps or asked_to_end,
            )  # fmt: skip
            for hook in hooks:
                if hook(end):
                    end = end._replace(last=True)
            if asked_to_end:
                raise interrupted.error
            if end.last:
                break
    return state


def _with_positions(loader: Loader) -> Iterator[tuple[Any, Any]]:
    while True:
        try:
            batch = next(loader)
        except StopIteration:
            return
        yield batch, loader.get_state()


def _refuse_non_finite(metrics: dict[str, float], step: int) -> None:
    if metrics.pop("finite", 1.0) == 1.0:
        return
    what = "loss" if not _is_finite(metrics.get("loss", 0.0)) else "gradient"
    raise NonFiniteLoss(
        f"The {what} is not finite at step {step} (loss {metrics.get('loss')}, gradient norm "
        f"{metrics.get('grad_norm')}); lower --learning-rate or look for broken images; "
        "nothing of this step was kept."
    )


def _is_finite(value: float) -> bool:
    return value - value == 0


def _batch_size(batch: Iterable[Any]) -> int:
    return jax.tree.leaves(batch)[0].shape[0]
