"""Arrays of which every task has a row of its own: how adapters learn which task an image belongs to.

The names of such arrays begin with ``task_`` and their last two axes are (tasks, numbers).  ``of_task`` leaves the row
of one task, and what is left is an ordinary delta: to the adapter it is a table of one task.  So nothing else of the
model has to carry a task around.  A table whose task was not told gives the mean of its rows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.training_options import parts_of
from medvfm_jax.types import Delta

PREFIX = "task_"
TASKS = "tasks"  # the option of an adapter: {site: number of its task}
KINDS = ("task_film", "dynamic_head", "task_lora_experts")


def row(table: Array) -> Array:
    """(..., tasks, n) -> (..., n): of a table of one task its row, else the mean of all."""
    return table.mean(-2)


def of_task(delta: Delta, task: Array | int) -> Delta:
    """The delta of one task.

    Args:
        delta: with tables of all tasks; one without tables is returned as it is.
        task: number of the task, which may be traced.

    Returns:
        The delta with tables of one row.
    """

    def chosen(path: tuple, leaf: Array) -> Array:
        if not str(path[-1].key).startswith(PREFIX):
            return leaf
        return jax.lax.dynamic_index_in_dim(leaf, task, axis=leaf.ndim - 2, keepdims=True)

    return jax.tree.map_with_path(chosen, delta)


def tasks_of(config: Mapping[str, Any] | None) -> Mapping[str, int]:
    """Which task each site has, as an adapter was told; empty where it knows no more than one task.

    Args:
        config: of the adapter, None for a custom one.

    Returns:
        {site: number of its task}.
    """
    found: Mapping[str, int] = {}
    for _, part in parts_of(config):
        if part["kind"] in KINDS and part.get(TASKS):
            found = part[TASKS]
    return found if len(set(found.values())) > 1 else {}


def knows_tasks(config: Mapping[str, Any]) -> bool:
    """Whether an adapter has a part that takes tasks.

    Args:
        config: of the adapter.

    Returns:
        True for the kinds of ``KINDS``.
    """
    return any(part["kind"] in KINDS for _, part in parts_of(config))


def with_tasks(config: Mapping[str, Any], tasks: Mapping[str, int]) -> dict[str, Any]:
    """Tell an adapter the tasks.

    Args:
        config: of the adapter.
        tasks: {site: number of its task}; empty leaves the configuration as it is.

    Returns:
        The configuration with these tasks in every part that takes them.
    """
    if not tasks:
        return dict(config)
    if config.get("kind") == "chain":
        return {**config, "parts": {name: with_tasks(part, tasks) for name, part in config["parts"].items()}}
    return {**config, TASKS: dict(tasks)} if config["kind"] in KINDS else dict(config)


def count_tasks(kind: str, tasks: Mapping[str, int] | None) -> int:
    """How many tasks an option names; 1 for None.

    Raises BadAdapterConfig unless they are numbered from 0 on, without a gap.
    """
    if tasks is None:
        return 1
    if not isinstance(tasks, Mapping) or not all(type(n) is int for n in tasks.values()):
        raise BadAdapterConfig(f"{kind}: tasks are numbers of sites, such as {{'north': 0, 'south': 1}}.")
    numbers = sorted(set(tasks.values()))
    if not numbers or numbers != list(range(len(numbers))):
        raise BadAdapterConfig(f"{kind}: tasks are numbered from 0 on without a gap, not {numbers}.")
    return len(numbers)


def same_rows(first: Array, count: int) -> Array:
    """(n,) -> (count, n): all tasks start alike."""
    return jnp.tile(first, (count, 1))
