"""Address parameters by path and edit a parameter tree without mutating it.

A path is what Linen calls a module, its names joined by "/": ``image_encoder/blocks_3/attn/qkv``.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from jax import Array

from medvfm_jax import patterns
from medvfm_jax.adapters.errors import NoSuchSite, NotMergeable
from medvfm_jax.printable import shortened
from medvfm_jax.types import Params

SiteDelta = dict[str, Array]  # what is trained at one site: {name: array}

_SLOT = "~delta"  # "~" cannot start a Linen name, so no module ever reads these keys


def match(pattern: str, paths: Iterable[str], what: str = "module that is called") -> list[str]:
    """Return the sorted paths that the regex ``pattern`` matches in full.

    Raises NoSuchSite with the nearest paths if it matches none, or if it is no regular expression or one that may take
    endlessly long: it may come from the delta of a stranger.
    """
    paths, shown = sorted(paths), shortened(pattern)
    try:
        matches = patterns.matcher(pattern, max(map(len, paths), default=0)).fullmatch
    except patterns.BadPattern as error:
        raise NoSuchSite(f"'{shown}' is not a regular expression that can be used ({error}).") from error
    found = [path for path in paths if matches(path)]
    if found:
        return found
    near = difflib.get_close_matches(shown, paths, n=5, cutoff=0.0)
    raise NoSuchSite(
        f"'{shown}' matches no {what} among {len(paths)}; it must match a whole path. The nearest: "
        f"{', '.join(near)}."
    )


def leaves_by_path(tree: Params) -> Iterator[tuple[str, str, Any]]:
    """Yield (module path, name, leaf) for each leaf of one variable collection."""
    for keys, leaf in flatten_dict(tree).items():
        yield "/".join(keys[:-1]), keys[-1], leaf


def parameters_by_path(params: Params) -> dict[str, tuple[str, str, Any]]:
    """{path of a parameter: (module path, name, leaf)}."""
    return {f"{m}/{n}".lstrip("/"): (m, n, leaf) for m, n, leaf in leaves_by_path(params["params"])}


def node_at(tree: Params, path: str) -> Params:
    """Return the subtree at ``path``, or {} where there is none."""
    for key in _keys(path):
        tree = tree.get(key, {})
        if not isinstance(tree, Mapping):
            return {}
    return tree


def without_slots(tree: Params) -> Params:
    """Drop the deltas that ``attach`` has stored in the tree."""
    clean = {k: v for k, v in tree.items() if not k.startswith(_SLOT)}
    return {k: without_slots(v) if isinstance(v, Mapping) else v for k, v in clean.items()}


def attach(params: Params, delta: Mapping[str, SiteDelta]) -> tuple[Params, dict[str, str]]:
    """Store each site's delta beside its parameters; return the new params and {path: key}.

    A lifted module then lifts the delta like its own weights: ``nn.scan`` slices it, ``nn.remat`` saves it.
    Raises NoSuchSite if ``params`` has nothing at a path nor at its parent: the delta is of another model.
    """
    slots: dict[str, str] = {}
    for path, arrays in delta.items():
        _check_exists(params, path)
        taken = sum(key.startswith(_SLOT) for key in node_at(params["params"], path))
        slots[path] = f"{_SLOT}{taken}"
        params = _edit(params, path, {slots[path]: arrays})
    return params, slots


def fold(
    params: Params, delta: Mapping[str, SiteDelta], merge_site: Callable[[Params, SiteDelta], Params]
) -> Params:
    """Replace each site's parameters by ``merge_site(site_params, site_delta)``.

    Raises NotMergeable naming every refused site, NoSuchSite if a path has no parameters.
    """
    refused = []
    for path, arrays in delta.items():
        try:
            params = _edit(params, path, merge_site(_existing(params, path), arrays))
        except NotMergeable as error:
            refused.append(f"{path} ({error})")
    if refused:
        raise NotMergeable(f"no exact merge for: {', '.join(refused)}")
    return params


def _existing(params: Params, path: str) -> Params:
    if not (site_params := node_at(params["params"], path)):
        raise NoSuchSite(_no_parameters(params, path))
    return site_params


def _check_exists(params: Params, path: str) -> None:
    parent = path.rpartition("/")[0]  # a module without parameters may still be a site
    if not (node_at(params["params"], path) or node_at(params["params"], parent)):
        raise NoSuchSite(_no_parameters(params, path))


def _no_parameters(params: Params, path: str) -> str:
    modules = sorted({module for module, _, _ in leaves_by_path(params["params"])})
    near = difflib.get_close_matches(path, modules, n=3, cutoff=0.0)
    return f"the delta is for another model: it changes '{path}', which is not here; the nearest: {', '.join(near)}."


def _keys(path: str) -> list[str]:
    return path.split("/") if path else []


def _edit(params: Params, path: str, new: Mapping[str, Any]) -> Params:
    def edit(tree: Params, keys: list[str]) -> Params:
        if not keys:
            return {**tree, **new}
        return {**tree, keys[0]: edit(tree.get(keys[0], {}), keys[1:])}

    return edit(params, ["params", *_keys(path)])
