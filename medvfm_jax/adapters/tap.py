"""Read the activations of chosen modules, differentiably."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from medvfm_jax.adapters.errors import NoSuchSite
from medvfm_jax.adapters.parameter_paths import leaves_by_path, match
from medvfm_jax.adapters.sites import ApplyFn, path_of, refuse_jitted
from medvfm_jax.types import Params


def tap(apply_fn: ApplyFn, pattern: str) -> ApplyFn:
    """Read the activations of chosen modules, differentiably.

    Args:
        apply_fn: (params, *inputs, **kw) -> out; it must forward ``mutable`` to Linen's apply, and an ``nn.scan`` must
            list "taps" in its variable_axes.
        pattern: regular expression of module paths, full match.

    Returns:
        ``tapped(params, *inputs, **kw) -> (out, {path: y})``. A module that is called often gives a tuple of y;
        inside an ``nn.scan`` y has a leading axis over the layers.

    Raises:
        JittedApply: the function is jitted and hides its modules.
        NoSuchSite: from the tapped function, if no module matches or a lifted transform drops the collection.
    """
    refuse_jitted(apply_fn)

    def tapped(params: Params, *inputs: Any, **kw: Any) -> tuple[Any, dict[str, Any]]:
        called: set[str] = set()

        def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            y, path = call(*args, **kwargs), path_of(context)
            if path is not None:
                called.add(path)
                if re.fullmatch(pattern, path):
                    context.module.sow("taps", "y", y)
            return y

        with nn.intercept_methods(intercept):
            out, state = apply_fn(params, *inputs, mutable=["taps"], **kw)
        seen = [(m, ys) for m, name, ys in leaves_by_path(state.get("taps", {})) if name == "y"]
        taps = {m: ys[0] if len(ys) == 1 else ys for m, ys in seen}
        if lost := set(match(pattern, called)) - set(taps):
            raise NoSuchSite(f"a lifted transform drops the 'taps' collection of {sorted(lost)}.")
        return out, taps

    return tapped
