"""Central client-level differential privacy: clipped updates, uniform weights, fixed divisor, noise once.

The choices belong together. Uniform weights make the sensitivity of the sum the clip itself; a public, fixed
divisor (rate × population, not the number that came) lets the divisor reveal nothing; noise is added once, to
the sum. Dividing by the number that came, or weighting by sample counts, voids the guarantee. Clip what the
server will really sum: after a codec has decoded, never before it encodes.

The noise is `jax.random.normal` in float32. That is right for studying utility and for trusted servers; the gaps
between floating-point numbers can leak (Mironov, CCS 2012), which the integer noise of `discrete` avoids.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr

from medvfm_jax.federated.core.records import Algorithm, Privacy, Tree
from medvfm_jax.federated.privacy.errors import BadPrivacy


def noisy_mean(total: Tree, bound: Array | float, privacy: Privacy, key: Array) -> Tree:
    """Sum of clipped updates -> (sum + N(0, (z C)² I)) / (q N), leaf by leaf; std per entry z C / (q N).

    `bound` is the C the updates were clipped to, q N is `privacy.expected_clients`, z is `update_multiplier`.
    Call it once per round, also in an empty round: a round without noise would reveal it.
    Source: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
    """
    if not privacy.expected_clients > 0:
        raise BadPrivacy(f"expected_clients is {privacy.expected_clients}; it must be above zero")
    leaves, structure = jax.tree.flatten(total)
    keys = jax.random.split(key, max(len(leaves), 1))
    multiplier = update_multiplier(privacy)

    def release(k: Array, x: Array) -> Array:
        # In float32 at least: noise drawn in bfloat16 has 256 values per octave.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        noise = jnp.asarray(bound, wide) * multiplier * private_normal(k, x.shape, wide)
        return ((x.astype(wide) + noise) / privacy.expected_clients).astype(x.dtype)

    return jax.tree.unflatten(structure, [release(k, x) for k, x in zip(keys[: len(leaves)], leaves)])


@partial(jax.jit, static_argnums=(1, 2))
def private_normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Normal noise of a privacy mechanism; `draws_private_noise` finds it in a program by the name of this function."""
    return jax.random.normal(key, shape, dtype)


def draws_private_noise(jaxpr: Jaxpr) -> bool:
    """Whether a traced program makes noise of privacy, so that its key must be its owner's secret."""
    if any(equation.params.get("name") == private_normal.__name__ for equation in jaxpr.eqns):
        return True
    parts = jax.tree.leaves(
        [list(equation.params.values()) for equation in jaxpr.eqns],
        is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr),
    )
    inner = [part.jaxpr if isinstance(part, ClosedJaxpr) else part for part in parts]
    return any(draws_private_noise(part) for part in inner if isinstance(part, Jaxpr))


def refuse_models(algorithm: Algorithm) -> None:
    """Raise BadPrivacy for an algorithm whose clients upload the model itself, for noise of server and clients."""
    if algorithm.uploads == "model":
        raise BadPrivacy(
            "Clients of this algorithm upload their factors and not what they changed, so clipping would cut the model "
            "itself: with client-level privacy choose an algorithm that averages changes, such as fedit or ffa_lora."
        )


def clip_vote(norm: Array, bound: Array) -> Array:
    """One participant's term of the clip count: () like the norm, +½ if its norm is within the bound, else -½.

    The half is not decoration: with ±½ instead of 1 and 0, adding or removing a participant changes the sum by ½,
    which is what makes the count a Gaussian mechanism with noise multiplier 2 σ_b. An absent client adds zero.
    """
    return jnp.where(norm <= bound, 0.5, -0.5).astype(norm.dtype)


def next_bound(bound: Array, votes: Array, privacy: Privacy, key: Array) -> Array:
    """Bound () and sum of `clip_vote` () -> next bound (): C exp(-η (b̃ - γ)), b̃ = ½ + (votes + N(0, σ_b²)) / (q N).

    γ, η, σ_b are `privacy.adapt`; without it the bound stays.
    Source: Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, algorithm 1.
    """
    if privacy.adapt is None:
        return bound
    noise = privacy.adapt.bit_noise * jax.random.normal(key, votes.shape, bound.dtype)
    share = 0.5 + (votes + noise) / privacy.expected_clients
    return bound * jnp.exp(-privacy.adapt.rate * (share - privacy.adapt.quantile))


def update_multiplier(privacy: Privacy) -> float:
    """Noise multiplier of the updates; (z⁻² - (2 σ_b)⁻²)^(-1/2) if the clip count takes its part of the budget.

    Updates and count together then cost what `privacy.noise_multiplier` z says, which is all the accountant needs.
    Raises BadPrivacy if the count alone uses more than that.
    """
    z = privacy.noise_multiplier
    if z < 0 or not math.isfinite(z):
        raise BadPrivacy(f"noise_multiplier is {z}; it must be a number of at least zero")
    if privacy.adapt is None or z == 0:
        return z
    if 2 * privacy.adapt.bit_noise <= z:
        raise BadPrivacy(
            f"the noise on the clip count, bit_noise {privacy.adapt.bit_noise:g} clients, is too small for noise "
            f"multiplier {z:g}; it must be above {z / 2:g}"
        )
    return 1 / math.sqrt(z**-2 - (2 * privacy.adapt.bit_noise) ** -2)
