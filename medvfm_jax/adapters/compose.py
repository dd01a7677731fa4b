"""The four ways a function can act at a module: before, after, parallel, around."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jax import Array

from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import unseen
from medvfm_jax.types import Params

Where = Literal["before", "after", "parallel", "around"]


class FrozenCall:
    """The frozen module inside an "around": ``call(x) -> y``; ``call.module`` is its configuration."""

    def __init__(self, run: Callable[..., Any], rest: tuple, kwargs: dict, module: nn.Module) -> None:
        self.module = module
        self._run, self._rest, self._kwargs = run, rest, kwargs
        self._rebuild: Callable[[Array], Any] = lambda y: y

    def __call__(self, x: Array) -> Array:
        """Run the frozen module on x instead of its own input; further inputs stay."""
        y, restore = _first(self._run(x, *self._rest, **self._kwargs))
        self._rebuild = lambda new: restore(new.astype(y.dtype))
        return y

    def instead(self, module: nn.Module, params: Params, x: Array) -> Array:
        """Run an unbound module with parameters of its own in place of the frozen one, with the same further inputs."""
        with unseen():
            y, restore = _first(module.apply({"params": params}, x, *self._rest, **self._kwargs))
        self._rebuild = restore
        return y

    def rebuild(self, y: Array) -> Any:
        """Put y where the frozen output was: same dtype, and the module's further outputs beside it."""
        return self._rebuild(y)


def act(
    where: Where,
    apply_site: Callable[..., Array],
    delta: SiteDelta,
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict,
    module: nn.Module,
) -> Any:
    """Run ``module`` through ``call(*args, **kwargs)`` with ``apply_site`` at the given position."""
    if where == "after":
        y, rebuild = _first(call(*args, **kwargs))
        return rebuild(apply_site(_cast(delta, y), y).astype(y.dtype))
    x, *rest = args
    if where == "around":
        frozen = FrozenCall(call, tuple(rest), kwargs, module)
        return frozen.rebuild(apply_site(delta, frozen, x))
    if where == "before":
        return call(apply_site(_cast(delta, x), x).astype(x.dtype), *rest, **kwargs)
    y, rebuild = _first(call(*args, **kwargs))
    return rebuild(y + apply_site(_cast(delta, y), x.astype(y.dtype)).astype(y.dtype))


def _first(out: Any) -> tuple[Array, Callable[[Array], Any]]:
    """Split a module's output into the array to adapt and how to put it back: y or (y, ...)."""
    if isinstance(out, tuple):
        return out[0], lambda y: (y, *out[1:])
    return out, lambda y: y


def _cast(delta: SiteDelta, like: Array) -> SiteDelta:
    """Bring a float32 delta to the compute dtype of the module it adapts."""
    return {name: a.astype(like.dtype) for name, a in delta.items()}
