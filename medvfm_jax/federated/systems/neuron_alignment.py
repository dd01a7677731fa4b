"""Hidden neurons of adapters have no order: permute those of one adapter to fit another's, and average what fits.

Neurons are the hidden units of a bottleneck ("down", "down_bias", "up") or the rank directions of a low-rank pair
("a", "b" and "a_q", "b_q" and so on).  Any order of them is the same function.  Each neuron is a point: what goes in
and what comes out.  Between two sets of equally many points of equal mass optimal transport is a permutation, found
exactly as an assignment; the mean after such permutations is one step towards the Wasserstein barycentre.
"""

import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Tree
from medvfm_jax.federated.systems.assignment import assign

Kind = Literal[
    "columns", "rows", "vector"
]  # how a leaf holds its neurons: (..., in, m), (..., m, out), (..., m)

_BOTTLENECK: dict[str, Kind] = {"down": "columns", "down_bias": "vector", "up": "rows"}
_DOWN_FACTOR = re.compile(r"a(_[^/]*)?")


class NeuronLeaf(NamedTuple):
    """One leaf of a group that shares its neurons."""

    name: str
    kind: Kind


def neuron_groups(delta: Tree) -> list[tuple[NeuronLeaf, ...]]:
    """Find the leaves that must be permuted together; empty if the delta has no such adapter."""
    sites: dict[str, list[str]] = {}
    for path, _ in jax.tree.leaves_with_path(delta):
        site, _, last = leaf_name(path).rpartition("/")
        sites.setdefault(site, []).append(last)
    groups = []
    for site, lasts in sites.items():
        kinds = [_BOTTLENECK] if {"down", "up"} <= set(lasts) else _pairs(lasts)
        for kind_of in kinds:
            leaves = (NeuronLeaf("/".join(filter(None, [site, n])), k) for n, k in kind_of.items())
            groups.append(tuple(leaf for leaf in leaves if leaf.name.rpartition("/")[2] in lasts))
    return groups


def neuron_leaves(delta: Tree) -> frozenset[str]:
    """Names of all leaves that ``align`` may permute."""
    return frozenset(leaf.name for group in neuron_groups(delta) for leaf in group)


def align(delta: Tree, reference: Tree) -> Tree:
    """Permute the neurons of ``delta`` so that their squared distance to those of ``reference`` is least.

    Both have the same structure; leaves without neurons stay.  The function of the adapter does not change.  Costs
    O(m^3) per site for m neurons.
    """
    found, wanted, groups = _named(delta), _named(reference), neuron_groups(delta)
    costs = [transport_cost(_points(found, group), _points(wanted, group)) for group in groups]
    moved = {}
    for group, order in zip(groups, assign(costs), strict=True):
        moved |= {leaf.name: _permute(found[leaf.name], leaf.kind, order) for leaf in group}
    return jax.tree.map_with_path(lambda path, x: moved.get(leaf_name(path), x), delta)


def transport_cost(points: Array, targets: Array) -> Array:
    """Points and targets (..., m, d) -> (..., m targets, m points): |x - y|^2 up to what every assignment has."""
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x y, and the squares are in every assignment.
    return -(targets @ jnp.swapaxes(points, -1, -2))


def barycentre(deltas: Tree, weights: Array, reference: Tree, iterations: int = 2) -> Tree:
    """Stacked deltas (n, ...), weights (n,) -> the mean of the deltas, each aligned to that mean.

    Alternates alignment and weighted mean, from ``reference`` on; no step increases sum_i w_i |aligned_i - mean|^2.
    Leaves without neurons are averaged.
    """
    share = weights / jnp.maximum(weights.sum(), 1e-30)

    def mean(x: Array) -> Array:
        return jnp.tensordot(share.astype(x.dtype), x, 1)

    def step(_: int, centre: Tree) -> Tree:
        return jax.tree.map(mean, jax.vmap(align, (0, None))(deltas, centre))

    return jax.lax.fori_loop(0, iterations, step, reference)


def _pairs(lasts: list[str]) -> list[dict[str, Kind]]:
    suffixes = [found[1] or "" for found in map(_DOWN_FACTOR.fullmatch, lasts) if found]
    return [{f"a{s}": "columns", f"b{s}": "rows"} for s in suffixes if f"b{s}" in lasts]


def _named(delta: Tree) -> dict[str, Array]:
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(delta)}


def _points(leaves: dict[str, Array], group: tuple[NeuronLeaf, ...]) -> Array:
    """Neurons as points (..., m, d)."""
    return jnp.concatenate([_as_rows(leaves[leaf.name], leaf.kind) for leaf in group], axis=-1)


def _as_rows(x: Array, kind: Kind) -> Array:
    if kind == "vector":
        return x[..., None]
    return jnp.swapaxes(x, -1, -2) if kind == "columns" else x


def _permute(x: Array, kind: Kind, order: Array) -> Array:
    rows = jnp.take_along_axis(_as_rows(x, kind), order[..., None], axis=-2)
    if kind == "vector":
        return rows[..., 0]
    return jnp.swapaxes(rows, -1, -2) if kind == "columns" else rows
