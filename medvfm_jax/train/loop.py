"""The training loop: fetch, step, tell the hooks. It knows nothing about models or images."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from medvfm_jax.printable import counted
from medvfm_jax.runs.goodput import DATA, OTHER, VALIDATION
from medvfm_jax.runs.interruption import deferred
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.state import State
from medvfm_jax.train.validation import Validation
from medvfm_jax.train.wall_time import WallTime
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

    step: steps taken so far; steps: planned. state: None where the hook said that it does not read it.
    loader_state: position after this step's batch.
    metrics: numbers on the host. examples, seconds: of this step; None where a display shall not show times. last:
    nothing follows. scores: of the validation after this step, None without one. stopping: early stopping so far.
    spent: seconds of wall time since the hooks heard of the step before, by what they were spent on.
    """

    step: int
    steps: int
    state: State | None
    loader_state: Any
    metrics: dict[str, float]
    examples: int
    seconds: float | None
    last: bool
    scores: Mapping[str, float] | None = None
    stopping: EarlyStopping | None = None
    spent: Mapping[str, float] = {}


class PerName(NamedTuple):
    """Numbers of a step that belong to names, in one array, so that a program need not have an output for each.

    names: of the values, None for one that belongs to nobody.  values: (k,).  only_set: zeros are left out.
    Under the key "loss/" they are called "loss/NAME" on the host.
    """

    names: Sequence[str | None]
    values: Any
    only_set: bool = False


def numbers_of(on_device: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a step, brought to the host; waits for the device."""
    arrays = {name: v.values if isinstance(v, PerName) else v for name, v in on_device.items()}
    numbers: dict[str, float] = {}
    for name, value in jax.device_get(arrays).items():
        of = on_device[name]
        if not isinstance(of, PerName):
            numbers[name] = float(value)
            continue
        each = zip(of.names, value.tolist(), strict=True)
        numbers |= {f"{name}{n}": float(v) for n, v in each if n is not None and (v or not of.only_set)}
    return numbers


AGREED = "all processes ended together"  # argument of a KeyboardInterrupt that followed a whole step

# True ends the training after this step.  A hook with a method ``reads_state(step, last) -> bool`` gets the state only
# at steps where that says so; between them its numbers come one step late, so that the device never waits for the host.
# What its time counts as is ``spends``, "other" where it has no such attribute.
Hook = Callable[[StepEnd], bool | None]


class Fitted(NamedTuple):
    """What training ends with; stopping: the record of validations, None without validation."""

    state: State
    stopping: EarlyStopping | None


class _Taken(NamedTuple):
    """A step that was given to the device; its metrics may not be there yet."""

    step: int
    loader_state: Any
    on_device: dict[str, Any]
    examples: int
    started: float


def fit(
    step: Callable[[State, Any], tuple[State, dict[str, Any]]],
    state: State,
    loader: Loader,
    hooks: Sequence[Hook] = (),
    *,
    steps: int,
    validation: Validation | None = None,
    stopping: EarlyStopping | None = None,
    agree: Callable[[bool], bool] = bool,
    agree_every: int = 1,
    clock: WallTime | None = None,
) -> Fitted:
    """Train until ``state.step`` is ``steps``, a hook says stop, or validations no longer improve.

    Args:
        step: ``(state, batch) -> (state, metrics)``, for example ``functools.partial(make_step(...), params)``.
            Metrics are scalars, or ``PerName``.
        state: with a counter ``step``; donated by the step.
        loader: iterator of batches with ``get_state``.
        hooks: called for each step in order, after its validation; once one has asked to stop, those after it see
            ``last=True``.
        steps: where training ends, counted from the first step of the whole run.
        validation: when and how to score the delta; None never.
        stopping: early stopping of an earlier part of the run.
        agree: where several processes train together, whether any of them was asked to end; then all do.
        agree_every: steps between two such questions, which wait for the device, and so for every process.
        clock: measures what the time is spent on.

    Returns:
        The last state and early stopping.

    Raises:
        NonFiniteLoss: naming the step.
        LoaderExhausted: the data ended before ``steps``.
        KeyboardInterrupt: after the step in progress, or the next at which the processes agree (after SIGTERM its
            subclass Terminated); the hooks then saw ``last=True``, so a checkpoint was written. Its argument is
            ``AGREED``.
    """
    if stopping is not None and stopping.exhausted:
        return Fitted(state, stopping)
    taken = int(state.step)
    clock = clock or WallTime()
    batches, tell = _with_positions(loader, clock), _Teller(steps, hooks, clock)
    waiting: _Taken | None = None  # the state after it is never read
    with deferred() as interrupted:
        following = next(batches, None) if taken < steps else None
        while taken < steps:
            if following is None:
                raise LoaderExhausted(
                    f"The data ended after {taken} of {counted(steps, 'step')}; let the loader repeat or take fewer."
                )
            (batch, loader_state), started = following, time.perf_counter()
            clock.giving()
            state, on_device = step(state, batch)
            clock.given(on_device)
            # The device works while the host prepares the next batch and hears of the step before.
            following = next(batches, None) if taken + 1 < steps else None
            taken += 1
            this = _Taken(taken, loader_state, on_device, _batch_size(batch), started)
            # Asked once: what comes later is for the next step.
            asked_to_end = taken % agree_every == 0 and agree(interrupted())
            ends = taken == steps
            if waiting is not None:
                ends |= tell(waiting, None, False, None, stopping, tell.metrics(waiting, ended=started))
                waiting = None
            last = ends or asked_to_end
            # Who is asked to end saves at once, and a run that goes on has the validations of one that never ended.
            due = validation is not None and validation.due(taken, ends)
            if not due and not any(_reads_state(hook, taken, last) for hook in hooks) and not last:
                waiting = this
                continue
            metrics = tell.metrics(this)  # refuses a bad step before anybody reads its state
            clock.done()
            scores = None
            if validation is not None and due:
                with clock.spending(VALIDATION):
                    scores, stopping = validation(state, taken, stopping)
                last |= stopping.exhausted
            last = tell(this, state, last, scores, stopping, metrics)
            if asked_to_end:
                raise interrupted.error(AGREED)
            if last:
                break
    return Fitted(state, stopping)


def _reads_state(hook: Hook, step: int, last: bool) -> bool:
    reads = getattr(hook, "reads_state", None)
    return reads is None or reads(step, last)


class _Teller:
    """Brings the numbers of a step to the host and passes them on to the hooks."""

    def __init__(self, steps: int, hooks: Sequence[Hook], clock: WallTime):
        self._steps, self._hooks, self._clock = steps, hooks, clock

    def metrics(self, taken: _Taken, ended: float | None = None) -> tuple[dict[str, float], float]:
        """(Numbers of the step, its seconds); waits for the device.

        ended: when the next step was given to the device; None: the step ends when its numbers are there.
        Raises NonFiniteLoss.
        """
        metrics = numbers_of(taken.on_device)
        _refuse_non_finite(metrics, taken.step)
        return metrics, (time.perf_counter() if ended is None else ended) - taken.started

    def __call__(
        self,
        taken: _Taken,
        state: State | None,
        last: bool,
        scores: Mapping[str, float] | None,
        stopping: EarlyStopping | None,
        found: tuple[dict[str, float], float],
    ) -> bool:
        """Whether the step is the last, or one of the hooks wants it to be.  found: see ``metrics``."""
        metrics, seconds = found
        numbers = (metrics, taken.examples, seconds, last, scores, stopping, self._clock.take())
        end = StepEnd(taken.step, self._steps, state, taken.loader_state, *numbers)
        for hook in self._hooks:
            with self._clock.spending(getattr(hook, "spends", OTHER)):
                stop = hook(end)
            if stop:
                end = end._replace(last=True)
        return end.last


def _with_positions(loader: Loader, clock: WallTime) -> Iterator[tuple[Any, Any]]:
    while True:
        with clock.spending(DATA):
            try:
                batch = next(loader)
            except StopIteration:
                return
            position = loader.get_state()
        yield batch, position


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
