"""Scale and shift features by what the task of an image asks for (FiLM conditioned on the task)."""

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.scale_shift import merge_after
from medvfm_jax.adapters.sites import Site, feature_width
from medvfm_jax.adapters.task_tables import count_tasks, row
from medvfm_jax.types import Params


def task_film(at: str, tasks: dict[str, int] | None = None) -> Adapter:
    """Features (..., d) after a module: ``y * (1 + task_scale[t]) + task_shift[t]`` for an image of task t.

    A linear generator of scale and shift from a one-hot code of the task is a table with a row for each: task_scale and
    task_shift (tasks, d), zero at init.  Merges as ``scale_shift`` does, with the row of the task that was chosen.

    Args:
        at: regular expression of module paths, full match.
        tasks: {site: number of its task}; a run fills it in. None: one task.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: tasks that are not numbered from 0 on.

    References:
        Perez et al. 2018 (FiLM), eq. 2, https://arxiv.org/abs/1709.07871.  Differs: the condition is the task and not a
        question, so that the generator has one layer; it starts at the identity.
    """
    count = count_tasks("task_film", tasks)

    def init_site(key: Array, site: Site) -> SiteDelta:
        del key
        width = feature_width(site, "y")
        return {"task_scale": jnp.zeros((count, width)), "task_shift": jnp.zeros((count, width))}

    def apply_site(delta: SiteDelta, y: Array) -> Array:
        return y * (1 + row(delta["task_scale"])) + row(delta["task_shift"])

    def merge_site(site_params: Params, delta: SiteDelta) -> Params:
        return merge_after(site_params, {name.removeprefix("task_"): row(x) for name, x in delta.items()})

    config = {"kind": "task_film", "at": at, "tasks": tasks}
    return at_sites(at, "after", init_site, apply_site, merge_site, config)
