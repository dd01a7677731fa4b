"""Find the modules an ``apply_fn`` calls, without running it.

Only ``__call__`` with a positional input is a site: ``Embed.attend`` or a method with another name cannot be
adapted, and of several inputs the first is the one that adapters see.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from medvfm_jax.adapters.errors import JittedApply, NoSuchSite, WrongSite
from medvfm_jax.adapters.parameter_paths import node_at, without_slots
from medvfm_jax.types import Params

ApplyFn = Callable[..., Any]

_unseen = threading.local()  # interceptors are thread-local in Linen, so this is too
_found = threading.local()


class Site(NamedTuple):
    """One module to adapt: x (..., in) -> y (..., out), as seen inside any scan or vmap around it.

    A module that is called several times (shared weights) is one site: the adapter acts in every call, and
    x and y are those of the first.

    Attributes:
        path: of the module, "image_encoder/blocks_0/mlp".
        module: unbound: read its configuration, never call it.
        params: shapes of its parameters, one slice of the stack.
        x: shape of the first positional input (None if it has none; a pytree if it is one).
        y: shape of the output, or of the first of several.
        stack: axes that lifted transforms put in front of the stored parameters.
        others: shapes of the further array inputs: masks, positions, keys and values.
    """

    path: str
    module: nn.Module
    params: Params
    x: Any
    y: Any
    stack: tuple[int, ...]
    others: tuple[Any, ...]


def find_sites(apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> dict[str, Site]:
    """Trace abstractly and return every module that is called.

    Args:
        apply_fn: (params, *inputs, **kw) of one Linen root module.
        params: arrays or shapes.
        *inputs: arrays or shapes.
        **kw: passed on.

    Returns:
        {module path: site}.

    Raises:
        JittedApply: the function is jitted and hides its modules.
        NoSuchSite: ``params`` is not the tree of the one Linen root module called.
    """
    refuse_jitted(apply_fn)
    known = getattr(_found, "sites", None)
    if known is None:
        return _traced_sites(apply_fn, params, *inputs, **kw)
    leaves, tree = jax.tree.flatten(jax.tree.map(_shape, ((params, *inputs), kw)))
    key = apply_fn, tree, tuple(leaves)
    if key not in known:
        known[key] = _traced_sites(apply_fn, params, *inputs, **kw)
    return dict(known[key])


@contextlib.contextmanager
def remembering(known: dict[Any, dict[str, Site]]) -> Iterator[None]:
    """Keep in ``known`` what is found while this is open, and trace no function twice for inputs of the same shapes."""
    before = getattr(_found, "sites", None)
    _found.sites = known
    try:
        yield
    finally:
        _found.sites = before


def _traced_sites(apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> dict[str, Site]:
    sites: dict[str, Site] = {}

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        path = path_of(context)
        if path is not None and path not in sites:
            sites[path] = _describe(path, context.module, args, kwargs, y, params["params"])
        return y

    with nn.intercept_methods(intercept):
        jax.eval_shape(lambda p, *xs: apply_fn(p, *xs, **kw), params, *inputs)
    return sites


def path_of(context: Any) -> str | None:
    """Return "image_encoder/blocks_3/attn" for a ``__call__`` of the adapted model, None otherwise."""
    if context.method_name != "__call__" or getattr(_unseen, "depth", 0):
        return None
    return "/".join(context.module.path)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Hide modules that an adapter itself runs from all interceptors: their paths are not the model's."""
    _unseen.depth = getattr(_unseen, "depth", 0) + 1
    try:
        yield
    finally:
        _unseen.depth -= 1


def refuse_jitted(apply_fn: ApplyFn) -> None:
    """Raise JittedApply: a compiled function is not traced again, so adapters would silently do nothing."""
    if isinstance(apply_fn, jax.stages.Wrapped):
        name = getattr(apply_fn, "__name__", "apply_fn")
        raise JittedApply(f"'{name}' is already jitted and hides its modules: adapt it first, then jit.")


def feature_width(site: Site, side: str) -> int:
    """Return the size of the last axis of x or y; raise WrongSite if that side is not one array."""
    shape = site.x if side == "x" else site.y
    if not isinstance(shape, jax.ShapeDtypeStruct) or not shape.shape:
        name = "positional input" if side == "x" else "output"
        found = "missing: it is called with keywords only" if shape is None else f"no single array: {shape}"
        raise WrongSite(
            f"'{site.path}' ({type(site.module).__name__}) cannot be adapted here, its {name} is {found}."
        )
    return shape.shape[-1]


def _describe(path: str, module: nn.Module, args: tuple, kwargs: dict, y: Any, stored: Params) -> Site:
    x = args[0] if args else None
    y = y[0] if isinstance(y, tuple) and y and not hasattr(y, "_fields") else y
    others = tuple(leaf for leaf in jax.tree.leaves((args[1:], kwargs)) if hasattr(leaf, "shape"))
    x, y, own, others = jax.tree.map(_shape, (x, y, _own_params(module), others))
    return Site(path, module.clone(parent=None), own, x, y, _stack_of(module, stored), others)


def _stack_of(module: nn.Module, stored: Params) -> tuple[int, ...]:
    """Compare the parameters a module sees with the stored ones: () or the lifted leading axes."""
    while not _own_params(module) and isinstance(module.parent, nn.Module):
        module = module.parent  # a module without parameters is lifted like its parent
    path, inner = "/".join(module.path), _own_params(module)
    outer = without_slots(node_at(stored, path))
    if flatten_dict(inner).keys() != flatten_dict(outer).keys():
        raise NoSuchSite(f"'{path}' is not a path in params: apply_fn must call one Linen root module.")
    pairs = list(zip(jax.tree.leaves(inner), jax.tree.leaves(outer), strict=True))
    stack = pairs[0][1].shape[: pairs[0][1].ndim - pairs[0][0].ndim] if pairs else ()
    if any(o.shape != stack + i.shape for i, o in pairs):
        raise WrongSite(f"'{path}': parameters that are lifted on another axis than 0 cannot be adapted.")
    return stack


def _own_params(module: nn.Module) -> Params:
    return without_slots(module.variables.get("params", {}))


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
