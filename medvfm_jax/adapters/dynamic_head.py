"""Small convolutions whose weights are made from the picture and its task (the dynamic head of DoDNet)."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.adapters.task_tables import count_tasks, row, same_rows


def dynamic_head(at: str, width: int = 8, layers: int = 2, tasks: dict[str, int] | None = None) -> Adapter:
    """Add ``e_n @ up`` to a map y (h, w, c): ``e_0 = y @ down``, ``e_i = relu(e_{i-1} @ W_i + b_i)``, all 1 x 1.

    The weights W_i (width, width) and b_i (width,) of all layers are ``mean of y over its places @ make +
    task_make[t]``, of an image of task t: a controller of pooled features and a one-hot code of the task. Of several
    maps (..., h, w, c), such as one for each prompt, each has weights of its own.  down
    (c, width) and make (c, layers * width * (width + 1)) start small and random, each row of task_make at the identity
    and up (width, c) at zero.  Not mergeable.

    Args:
        at: regular expression of module paths, full match; modules that give maps.
        width: channels of the made convolutions.
        layers: how many there are.
        tasks: {site: number of its task}; a run fills it in. None: one task.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: a width or number of layers below 1, or tasks that are not numbered from 0 on.
        WrongSite: at init, for a module whose output is no map (h, w, c).

    References:
        Zhang et al. 2021 (DoDNet), https://arxiv.org/abs/2011.10217.  Differs: the head is a residual of a map
        inside the decoder that starts at zero, where the publication's gives the logits; features are pooled from that
        map, there from the end of the encoder.
    """
    if width < 1 or layers < 1:
        raise BadAdapterConfig(f"dynamic_head: width and layers must be at least 1, not {width}, {layers}.")
    count, one = count_tasks("dynamic_head", tasks), width * (width + 1)

    def init_site(key: Array, site: Site) -> SiteDelta:
        shape = getattr(site.y, "shape", ())
        if len(shape) < 3:
            raise WrongSite(
                f"dynamic_head at '{site.path}': its output {shape} is no map (h, w, channels); choose another place "
                "with head.at."
            )
        c, (of_down, of_make) = shape[-1], jax.random.split(key)
        bound = 1 / math.sqrt(c)
        small = bound / width
        start = jnp.concatenate([jnp.eye(width).reshape(-1), jnp.zeros(width)])
        return {
            "down": jax.random.uniform(of_down, (c, width), minval=-bound, maxval=bound),
            "make": jax.random.uniform(of_make, (c, layers * one), minval=-small, maxval=small),
            "task_make": same_rows(jnp.tile(start, layers), count),
            "up": jnp.zeros((width, c)),
        }

    def apply_site(delta: SiteDelta, y: Array) -> Array:
        made = y.mean((-3, -2)) @ delta["make"] + row(delta["task_make"])
        made = made.reshape(*made.shape[:-1], layers, width + 1, width)
        e = y @ delta["down"]
        for i in range(layers):
            weights, bias = made[..., i, :-1, :], made[..., i, None, None, -1, :]
            e = jax.nn.relu(jnp.einsum("...hwi,...ij->...hwj", e, weights) + bias)
        return y + e @ delta["up"]

    config = {"kind": "dynamic_head", "at": at, "width": width, "layers": layers, "tasks": tasks}
    refuse = not_mergeable("its weights are made from the picture")
    return at_sites(at, "after", init_site, apply_site, refuse, config)
