"""Where adapters should help most: what a first step of low rank gains at each weight, and a choice within a budget."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.theory.gradient_moments import Moments
from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank


class Place(NamedTuple):
    """What is known of one weight matrix, or of several alike.

    Attributes:
        path: of the weight; of several, with ``*`` for their numbers.
        weights: how many there are.
        parameters: numbers in them.
        trained: numbers of a low-rank update of them, r (in + out) each.
        fisher: trace of the empirical Fisher information.
        fisher_error: its standard error over images.
        signal: squared norm of the expected gradient, estimated without bias.
        gain: decrease of the loss per unit of learning rate by a first step with b = 0 and the best rows of a,
            the first r singular vectors: the sum of the r largest squared singular values of the mean gradient. The
            noise of few images is in it too.
        energy_rank: smallest rank with nine tenths of the mean gradient's energy; of several, the median, as below.
        stable_rank: of the mean gradient.
        effective_rank: of the mean gradient.

    References:
        Wang et al. 2024, LoRA-GA, https://arxiv.org/abs/2407.05000, on first steps of low rank.
    """

    path: str
    weights: int
    parameters: int
    trained: int
    fisher: float
    fisher_error: float
    signal: float
    gain: float
    energy_rank: float
    stable_rank: float
    effective_rank: float

    @property
    def score(self) -> float:
        """Gain per trained number, by which ``within_budget`` chooses."""
        return self.gain / self.trained


def place(path: str, found: Moments, rank: int) -> Place:
    """One weight.

    Args:
        path: of the weight.
        found: moments of its gradients.
        rank: of the update; at most the smaller side of the matrix counts.

    Returns:
        What is known of it; ranks are 0 where the mean gradient is 0.
    """
    inside, outside = found.mean.shape
    rank = min(rank, inside, outside)
    values = jnp.linalg.svd(jnp.asarray(found.mean), compute_uv=False)
    energy = float(np.vdot(found.mean, found.mean))
    ranks = (energy_rank(values), stable_rank(values), effective_rank(values)) if energy > 0 else (0, 0, 0)
    gain = energy * float(captured_energy(values)[rank - 1]) if energy > 0 else 0.0
    return Place(
        path, 1, found.mean.size, rank * (inside + outside), found.fisher, found.fisher_error, found.signal, gain,
        *map(float, ranks),
    )  # fmt: skip


def alike(path: str) -> str:
    """The path with its numbers left open: ``blocks_3/attn/qkv`` -> ``blocks_*/attn/qkv``."""
    return re.sub(r"(?<=_)\d+(?=/|$)", "*", path)


def grouped(places: Iterable[Place]) -> list[Place]:
    """Places whose paths differ by numbers alone as one: sums, medians of ranks, errors as of independent numbers.

    Args:
        places: of single weights.

    Returns:
        The groups, the largest gain per trained number first.
    """
    groups: dict[str, list[Place]] = {}
    for one in places:
        groups.setdefault(alike(one.path), []).append(one)
    found = []
    for path, members in groups.items():
        columns: Mapping[str, NDArray] = {
            name: np.array([getattr(m, name) for m in members]) for name in Place._fields[1:]
        }
        summed = {
            name: columns[name].sum()
            for name in ("weights", "parameters", "trained", "fisher", "signal", "gain")
        }
        medians = {name: float(np.median(columns[name])) for name in Place._fields if name.endswith("_rank")}
        error = float(np.sqrt((columns["fisher_error"] ** 2).sum()))
        whole = {name: int(summed.pop(name)) for name in ("weights", "parameters", "trained")}
        found.append(
            Place(
                path=path, fisher_error=error, **whole, **{k: float(v) for k, v in summed.items()}, **medians
            )
        )
    return sorted(found, key=lambda one: -one.score)


def within_budget(places: Sequence[Place], budget: int) -> list[Place]:
    """Places that gain most with at most so many trained numbers, greedily by gain per number.

    Greedy is not the best choice in general: one large place may beat the small ones that were taken before it.

    Args:
        places: to choose from.
        budget: trained numbers in all.

    Returns:
        The chosen ones, in the order of choice; none where each is larger than the budget.
    """
    chosen, left = [], budget
    for one in sorted(places, key=lambda one: -one.score):
        if one.gain > 0 and one.trained <= left:
            chosen.append(one)
            left -= one.trained
    return chosen
