"""Feature maps of several modules for an adapter that acts at one: a pyramid of any encoder, by taps."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.adapters.errors import NoSuchSite, WrongSite
from medvfm_jax.adapters.parameter_paths import leaves_by_path, match
from medvfm_jax.adapters.sites import ApplyFn, Site, path_of, refuse_jitted
from medvfm_jax.types import Params

TAPS = "taps"  # the collection of ``tap``, which the models' scans carry


class PyramidTaps:
    """Outputs (h_i, w_i, c_i) of the modules that match ``levels``, for those that match ``at``.

    While ``wrap``'s function runs, levels are sown into Linen's collection "taps", so that ``nn.scan`` and ``nn.remat``
    hand them out; ``seen`` reads them where the adapted module ends.
    """

    def __init__(self, at: str, levels: str) -> None:
        self._levels = levels
        # Unlike the names of other taps, and of other pyramids in the same chain.
        self._name = f"level_{zlib.crc32(repr((at, levels)).encode())}"

    def shapes(self, sites: Mapping[str, Site]) -> list[jax.ShapeDtypeStruct]:
        """What ``seen`` will give; raises NoSuchSite if no module is a level, WrongSite if one has no map."""
        shapes = []
        for path in sorted(match(self._levels, sites), key=_natural):
            site = sites[path]
            shape = getattr(site.y, "shape", ())
            if len(shape) != 3:
                raise WrongSite(
                    f"level '{path}': its output {shape or 'of several arrays'} is no map (h, w, channels)."
                )
            shapes += [site.y] * _product(site.stack)
        return shapes

    def wrap(self, apply_fn: ApplyFn) -> ApplyFn:
        """(params, *inputs, **kw) -> output, as ``apply_fn``, with levels kept while it runs."""
        refuse_jitted(apply_fn)

        def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            y, path = call(*args, **kwargs), path_of(context)
            if path is not None and re.fullmatch(self._levels, path):
                context.module.sow(TAPS, self._name, y[0] if isinstance(y, tuple) else y)
            return y

        def kept(params: Params, *inputs: Any, mutable: Any = False, **kw: Any) -> Any:
            wanted = [mutable] if isinstance(mutable, str) else list(mutable or ())
            with nn.intercept_methods(intercept):
                out, state = apply_fn(params, *inputs, mutable=[*{*wanted, TAPS}], **kw)
            return (out, self._without(state, wanted)) if wanted else out

        return kept

    def seen(self, module: nn.Module) -> Sequence[Array]:
        """The levels so far, in the order of their paths; raises NoSuchSite where a level has not run."""
        sown = module.scope.root.variables().get(TAPS, {})
        own = {path: leaf for path, name, leaf in leaves_by_path(sown) if name == self._name}
        if not own:
            raise NoSuchSite(
                f"no module that matches '{self._levels}' has run before '{'/'.join(module.path)}' ends, or a lifted "
                "transform drops the 'taps' collection."
            )
        maps: list[Array] = []
        for path in sorted(own, key=_natural):
            for y in own[path][:1]:  # of a module that is called often the first output, as for all sites
                maps += list(y.reshape(-1, *y.shape[-3:]))
        return maps

    def _without(self, state: Any, wanted: Sequence[str]) -> dict[str, Any]:
        flat = flatten_dict(dict(state))
        return unflatten_dict({k: v for k, v in flat.items() if k[0] in wanted and k[-1] != self._name})


def _natural(path: str) -> list[tuple[int, str]]:
    """blocks_2 before blocks_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _product(stack: tuple[int, ...]) -> int:
    total = 1
    for axis in stack:
        total *= axis
    return total
