"""Where the arrays of a run live and which process writes its files: one device, or what ``parallel`` makes of many."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax

from medvfm_jax.train.state import TrainState
from medvfm_jax.train.step import Step
from medvfm_jax.types import Batch, Params


class Placement(Protocol):
    """What training asks of the devices it runs on.

    process: number of this process; 0 writes the files.  processes: how many run this same program.
    parts: equal parts a batch is divided into over all devices.
    """

    process: int
    processes: int
    parts: int

    def describe(self) -> dict[str, Any]:
        """For the record of the run."""
        ...

    def check_batch(self, size: int, accumulate: int) -> None:
        """Raise MedvfmError if batches of this size, cut into so many parts, cannot be divided over the devices."""
        ...

    def keep(self, params: Params) -> Params:
        """Weights just loaded -> the same weights where they wait to be placed."""
        ...

    def put_params(self, params: Params) -> Params:
        """Weights of this process -> the same weights where the step wants them."""
        ...

    def put_state(self, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """A state that is the same in every process -> the same state where the step wants it."""
        ...

    def put_share(self, batch: Any) -> Any:
        """The examples that this process loaded -> the batch of all processes."""
        ...

    def put_whole(self, batch: Batch) -> Batch:
        """A batch that every process has whole -> the same batch, divided over the devices."""
        ...

    def compile(self, step: Step, params: Params, state: TrainState) -> Callable[..., Any]:
        """``step(params, state, batch)`` -> ``step(state, batch)``, for placed weights and states placed like this."""
        ...

    def fetch(self, tree: Any) -> Any:
        """Arrays from wherever they are -> numpy, whole, in every process."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all of them."""
        ...

    def same(self, number: int, what: str) -> None:
        """Raise MedvfmError naming ``what`` unless every process has the same number."""
        ...


class OneDevice:
    """JAX's default device, in this process alone."""

    process, processes, parts = 0, 1, 1

    def describe(self) -> dict[str, Any]:
        """For the record of the run."""
        return {"devices": 1}

    def check_batch(self, size: int, accumulate: int) -> None:
        """One device takes every batch."""

    def keep(self, params: Params) -> Params:
        """One device: identity."""
        return params

    def put_params(self, params: Params) -> Params:
        """One device: identity."""
        return params

    def put_state(self, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """One device: identity."""
        return state

    def put_share(self, batch: Any) -> Any:
        """One device: identity."""
        return batch

    def put_whole(self, batch: Batch) -> Batch:
        """One device: identity."""
        return batch

    def compile(self, step: Step, params: Params, state: TrainState) -> Callable[..., Any]:
        """The step with its weights; they stay an argument of the compiled program."""
        return lambda state, batch: step(params, state, batch)

    def fetch(self, tree: Any) -> Any:
        """From the device."""
        return jax.device_get(tree)

    def any(self, flag: bool) -> bool:
        """Single process: identity."""
        return flag

    def same(self, number: int, what: str) -> None:
        """Single process: identity."""
