"""Adapters for frozen Flax Linen models, as pure functions on pytrees.

A *delta* is a plain dict ``{module path: {name: array}}`` and the only thing trained.  ``params`` is what
``model.apply`` takes, ``{"params": ...}``; it stays frozen, and un-batched under vmap over deltas.

How a delta reaches its module: ``wrap`` stores each site's arrays beside the site's own parameters, under a
key no Linen module reads, and intercepts the site's ``__call__``.  So a delta is lifted exactly like the
weights it adapts: ``nn.scan`` slices it and ``nn.remat`` saves it.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import Array

from medvfm_jax.adapters.compose import Where, act
from medvfm_jax.adapters.errors import NoSuchSite, NotMergeable, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta, attach, fold, match
from medvfm_jax.adapters.sites import ApplyFn, Site, feature_width, find_sites, path_of, refuse_jitted
from medvfm_jax.types import Delta, Params

_NEEDS = {"before": ("x",), "after": ("y",), "parallel": ("x", "y"), "around": ("x", "y")}


class Adapter(NamedTuple):
    """Three pure functions and what they act on.

    Examples:
        Around any function that calls Linen modules:

        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from medvfm_jax.adapters import lora
        >>> network = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
        >>> x = jnp.ones((1, 3))
        >>> params, apply = network.init(jax.random.key(0), x), network.apply
        >>> adapter = lora(rank=1, alpha=None, at="layers_0")
        >>> delta = adapter.init(jax.random.key(1), apply, params, x)
        >>> jax.tree.map(jnp.shape, delta)
        {'layers_0': {'a': (3, 1), 'b': (1, 4)}}
        >>> adapted = adapter.wrap(apply)
        >>> bool((adapted(params, delta, x) == apply(params, x)).all())  # b starts at zero
        True
        >>> moved = jax.tree.map(lambda leaf: leaf + 1.0, delta)
        >>> merged = adapter.merge(params, moved)
        >>> bool(jnp.allclose(apply(merged, x), adapted(params, moved, x), atol=1e-5))
        True

    Attributes:
        init: (key, apply_fn, params, *inputs, **kw) -> delta; finds its sites abstractly, never runs the model.
        wrap: (apply_fn, strict=True) -> adapted(params, delta, *inputs, **kw).  Strict: every site of the delta must be
            called, or NoSuchSite is raised; turn it off for a function that reaches only a part of the model.
        merge: (params, delta) -> params of the unadapted model; raises NotMergeable naming the sites.
        levels: {"params"}, {"modules"} or both; parameters are changed beneath every module, so first in a chain.
        config: JSON-able description from which ``from_config`` rebuilds it; None for a custom adapter.
    """

    init: Callable[..., Delta]
    wrap: Callable[..., ApplyFn]
    merge: Callable[[Params, Delta], Params]
    levels: frozenset[str]
    config: Mapping[str, Any] | None = None


def at(
    pattern: str,
    where: Where,
    init_site: Callable[[Array, Site], SiteDelta],
    apply_site: Callable[..., Array],
    merge_site: Callable[[Params, SiteDelta], Params] | None = None,
    config: Mapping[str, Any] | None = None,
    init_shared: Callable[[Array, Mapping[str, Site]], SiteDelta] | None = None,
) -> Adapter:
    """Adapt every module whose path fully matches a pattern: x (..., in) -> y (..., out).

    Args:
        pattern: regular expression of module paths, full match.
        where: "before" the module (on its input), "after" it (on its output), "parallel" (of the input, added to the
            output), or "around" it.
        init_site: (key, site) -> the site's arrays in float32, without stack axes: those are added here.
        apply_site: (delta, x) -> array, of the input or output; for "around" (delta, call, x) -> array, where
            ``call(x)`` runs the frozen module and ``call.module`` is its configuration; there delta comes uncast, in
            float32.
        merge_site: (site_params, delta) -> the changed parameters; must broadcast over leading stack axes. None: the
            adapter cannot be merged.
        config: JSON-able description, see ``Adapter``.
        init_shared: (key, {path: site}) -> arrays that all sites share, in float32.  They are stored under the module
            that all sites lie in, and ``apply_site`` and ``merge_site`` find them beside the site's own.

    Returns:
        The adapter. Its ``init`` raises NoSuchSite if nothing matches, WrongSite if a matched module has no single
        array to adapt, or if sites that share arrays lie in no module together.

    Raises:
        NoSuchSite: from the adapted function, where a site of the delta is not called.
    """

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        sites = find_sites(apply_fn, params, *inputs, **kw)
        delta: Delta = {}
        for path in match(pattern, sites):
            for side in _NEEDS[where]:
                feature_width(sites[path], side)
            delta[path] = _init_stacked(named_key(key, path), sites[path], init_site)
        if init_shared is not None:
            home = _home(pattern, list(delta))
            delta[home] = init_shared(named_key(key, home), {path: sites[path] for path in delta})
        return delta

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        refuse_jitted(apply_fn)

        def adapted(params: Params, delta: Delta, *inputs: Any, **kw: Any) -> Any:
            shared, own = _shared_and_own(delta) if init_shared is not None else ({}, delta)
            params, slots = attach(params, own)
            reached: set[str] = set()

            def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
                path = path_of(context)
                if path not in slots:
                    return call(*args, **kwargs)
                reached.add(path)
                site_delta = {**shared, **context.module.get_variable("params", slots[path])}
                return act(where, apply_site, site_delta, call, args, kwargs, context.module)

            with nn.intercept_methods(intercept):
                out = apply_fn(params, *inputs, **kw)
            if strict and (missed := sorted(set(own) - reached)):
                raise NoSuchSite(_never_called(missed))
            return out

        return adapted

    def merge(params: Params, delta: Delta) -> Params:
        shared, own = _shared_and_own(delta) if init_shared is not None else ({}, delta)
        one = merge_site or not_mergeable("acts on activations")
        return fold(params, own, lambda site_params, arrays: one(site_params, {**shared, **arrays}))

    return Adapter(init, wrap, merge, frozenset({"modules"}), config)


def chain(**adapters: Adapter) -> Adapter:
    """Nest adapters, the first innermost.

    Args:
        **adapters: name -> adapter; those that change parameters (``tune``) first.

    Returns:
        One adapter, whose delta is ``{name: delta}``.

    Raises:
        WrongSite: an adapter of parameters comes after one of modules.
        NoSuchSite: from the adapted function, for a delta with other parts.
    """
    levels: frozenset[str] = frozenset()
    for name, adapter in adapters.items():
        if "params" in adapter.levels and "modules" in levels:
            raise WrongSite(f"'{name}' changes parameters beneath the adapters before it: put it first.")
        levels |= adapter.levels

    def init(key: Array, apply_fn: ApplyFn, params: Params, *inputs: Any, **kw: Any) -> Delta:
        delta: Delta = {}
        for name, adapter in adapters.items():
            delta[name] = adapter.init(named_key(key, name), apply_fn, params, *inputs, **kw)
            if adapter.levels != {"params"}:  # which changes no module and no shape
                apply_fn = bind(adapter.wrap(apply_fn), delta[name])
        return delta

    def wrap(apply_fn: ApplyFn, strict: bool = True) -> ApplyFn:
        refuse_jitted(apply_fn)

        def adapted(params: Params, delta: Delta, *inputs: Any, **kw: Any) -> Any:
            _check_names(delta)
            nested = apply_fn
            for name, adapter in adapters.items():
                nested = bind(adapter.wrap(nested, strict), delta[name])
            return nested(params, *inputs, **kw)

        return adapted

    def merge(params: Params, delta: Delta) -> Params:
        _check_names(delta)
        for name, adapter in adapters.items():
            params = adapter.merge(params, delta[name])
        return params

    def _check_names(delta: Delta) -> None:
        if set(delta) != set(adapters):
            raise NoSuchSite(f"the delta has the parts {sorted(delta)}, the adapter {sorted(adapters)}.")

    parts = {name: adapter.config for name, adapter in adapters.items()}
    config = None if None in parts.values() else {"kind": "chain", "parts": parts}
    return Adapter(init, wrap, merge, levels, config)


def bind(adapted: ApplyFn, delta: Delta) -> ApplyFn:
    """Fix the delta of an adapted function.

    Args:
        adapted: (params, delta, *inputs, **kw) -> output.
        delta: to fix.

    Returns:
        ``bound(params, *inputs, **kw)``, again an ``apply_fn``.
    """
    return lambda params, *inputs, **kw: adapted(params, delta, *inputs, **kw)


def not_mergeable(reason: str) -> Callable[[Params, SiteDelta], Params]:
    """A ``merge_site`` for ``at`` that raises NotMergeable with the reason."""

    def refuse(site_params: Params, delta: SiteDelta) -> Params:
        raise NotMergeable(reason)

    return refuse


def named_key(key: Array, name: str) -> Array:
    """Fold a name into a key; unlike ``hash`` the result is the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _init_stacked(key: Array, site: Site, init_site: Callable[[Array, Site], SiteDelta]) -> SiteDelta:
    def stacked(keys: Array) -> SiteDelta:
        return init_site(keys, site)

    for _ in site.stack:
        stacked = jax.vmap(stacked)
    return stacked(jax.random.split(key, site.stack) if site.stack else key)


def _home(pattern: str, paths: list[str]) -> str:
    """The innermost module that all sites lie in, where what they share is stored; no site itself."""
    parents = [path.split("/")[:-1] for path in paths]
    common = parents[0]
    for parent in parents[1:]:
        same = [a == b for a, b in zip(common, parent, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    if not common:
        raise WrongSite(
            f"the sites of '{pattern}' share arrays and lie in no module together: choose sites inside one part of "
            "the model, such as image_encoder."
        )
    return "/".join(common)


def _shared_and_own(delta: Delta) -> tuple[SiteDelta, Delta]:
    """What all sites share, under the one path that all others begin with, and what each has."""
    home = min(delta, key=len)
    return delta[home], {path: arrays for path, arrays in delta.items() if path != home}


def _never_called(missed: list[str]) -> str:
    shown = ", ".join(missed[:5]) + (f" and {len(missed) - 5} more" if len(missed) > 5 else "")
    return (
        f"the delta has sites that were not called: {shown}; is a part of the model jitted, are the inputs "
        "of another kind than at init, or does the function reach only a part of the model (strict=False)?"
    )
