"""Look at what modules take and give while a function is traced, and put something else in place of what they give."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from medvfm_jax.adapters.sites import ApplyFn, path_of, refuse_jitted
from medvfm_jax.types import Params

Visit = Callable[[str, nn.Module, Any, Callable[[], Any]], Any]


def visiting(apply_fn: ApplyFn, visit: Visit) -> ApplyFn:
    """Show every call of a module to a function.

    Args:
        apply_fn: (params, *inputs, **kw) of one Linen root module, whose modules are not scanned.
        visit: (path, module, x, call) -> what the module gives; ``call()`` runs it on its inputs.

    Returns:
        ``visited(params, *inputs, **kw)``, like ``apply_fn``.

    Raises:
        JittedApply: the function is jitted and hides its modules.
    """
    refuse_jitted(apply_fn)

    def visited(params: Params, *inputs: Any, **kw: Any) -> Any:
        def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            path = path_of(context)
            if path is None or not args:
                return call(*args, **kwargs)
            return visit(path, context.module, args[0], lambda: call(*args, **kwargs))

        with nn.intercept_methods(intercept):
            return apply_fn(params, *inputs, **kw)

    return visited
