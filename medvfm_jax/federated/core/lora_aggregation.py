"""Combine low-rank factors of many clients: exactly by stacking, best by a truncated SVD, and how wrong a mean is.

A client's update of one site is ``a @ b`` with a (..., in, r), b (..., r, out), as in ``adapters.lora``; leading axes
belong to stacked layers.  Over clients there is one more leading axis n.  No function here builds an in x out
matrix, except ``product``, which is for where a dense increment is wanted.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Tree

DAMPING = 1e-4  # of the squared norm of an update: what a change of it is compared with in ``collinearity``
_DOWN = re.compile(r"(?:(.*)/)?a(_[^/]*)?")


class Factors(NamedTuple):
    """One low-rank update ``a @ b``."""

    a: Array  # (..., in, r), random at the start
    b: Array  # (..., r, out), zero at the start


def factors_of(delta: Tree) -> dict[str, Factors]:
    """Find the pairs of leaves "site/a", "site/b" (and "site/a_q", "site/b_q") -> {"site/ab" or "site/ab_q": pair}.

    Raises BadFederation if there is none.
    """
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(delta)}
    pairs = {}
    for name_a, a in leaves.items():
        found = _DOWN.fullmatch(name_a)
        if found is None:
            continue
        pair, name_b = (_name(found, kind) for kind in ("ab", "b"))
        b = leaves.get(name_b)
        if b is not None and min(a.ndim, b.ndim) >= 2 and a.shape[-1] == b.shape[-2]:
            pairs[pair] = Factors(a, b)
    if not pairs:
        raise BadFederation(
            f"No low-rank factors a and b among {sorted(leaves)[:6]}: use an adapter of the LoRA family."
        )
    return pairs


def replace_factors(delta: Tree, pairs: dict[str, Factors]) -> Tree:
    """Put pairs, named as by ``factors_of``, back into a delta."""
    leaves: dict[str, Array] = {}
    for pair, factors in pairs.items():
        leaves |= leaves_of_pair(pair, factors)
    return jax.tree.map_with_path(lambda path, leaf: leaves.get(leaf_name(path), leaf), delta)


def leaves_of_pair(pair: str, factors: Factors) -> dict[str, Array]:
    """Pair "site/ab_q" -> its leaves {"site/a_q": a, "site/b_q": b}."""
    return dict(zip(names_in_pair(pair), factors, strict=True))


def names_in_pair(pair: str) -> tuple[str, str]:
    """Pair "site/ab_q" -> the names of its leaves ("site/a_q", "site/b_q")."""
    head, _, last = pair.rpartition("/")
    name_a, name_b = ("/".join(filter(None, [head, kind + last.removeprefix("ab")])) for kind in "ab")
    return name_a, name_b


def names_of_a(delta: Tree) -> frozenset[str]:
    """Leaf names of the factors a."""
    return _names(delta, "a")


def names_of_b(delta: Tree) -> frozenset[str]:
    """Leaf names of the factors b."""
    return _names(delta, "b")


def stack(factors: Factors, weights: Array) -> Factors:
    """Factors of n clients, weights (n,) -> one pair of rank n r whose product is sum_i p_i a_i b_i, exactly.

    weights are normalised to sum 1; they go into b.
    """
    a, b = factors
    share = (weights / jnp.where(weights.sum() > 0, weights.sum(), 1)).astype(b.dtype)
    b = b * share.reshape(-1, *[1] * (b.ndim - 1))
    wide = jnp.moveaxis(a, 0, -2)  # (..., in, n, r)
    tall = jnp.moveaxis(b, 0, -3)  # (..., n, r, out)
    rank = a.shape[0] * a.shape[-1]
    return Factors(wide.reshape(*wide.shape[:-2], rank), tall.reshape(*tall.shape[:-3], rank, tall.shape[-1]))


def mean(factors: Factors, weights: Array) -> Factors:
    """Weighted mean of either factor; its product is not the mean of products (``residual`` is what is missing)."""
    share = weights / jnp.where(weights.sum() > 0, weights.sum(), 1)
    return Factors(*(jnp.tensordot(share.astype(x.dtype), x, 1) for x in factors))


def residual(factors: Factors, weights: Array) -> Factors:
    """Factors of rank n r of sum_i p_i a_i b_i - mean(a) mean(b) = sum_i p_i (a_i - mean a)(b_i - mean b)."""
    centre = mean(factors, weights)
    present = (weights > 0).reshape(-1, *[1] * (factors.a.ndim - 1))
    # Absent clients have weight zero; centring them could only add rounding.
    away = Factors(*(jnp.where(present, x - c, 0) for x, c in zip(factors, centre, strict=True)))
    return stack(away, weights)


def truncate(factors: Factors, rank: int) -> Factors:
    """Best approximation of ``a @ b`` of lower rank, in balanced factors U sqrt(S), sqrt(S) V', largest first.

    QR of both factors, then an SVD of the small core R_a R_b'; equal to the truncated SVD of the product.  If the
    product has fewer than ``rank`` singular values, the factors are filled up with zeros.
    """
    q_a, q_b, u, s, v = _small_svd(factors)
    root = jnp.sqrt(s[..., :rank])
    a = (q_a @ u[..., :rank]) * root[..., None, :]
    b = root[..., None] * (v[..., :rank, :] @ jnp.swapaxes(q_b, -1, -2))
    missing = rank - root.shape[-1]
    if missing > 0:
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)])
        b = jnp.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, missing), (0, 0)])
    return Factors(a, b)


def product_norm(factors: Factors) -> Array:
    """Frobenius norm (...) of ``a @ b``, from the triangular parts."""
    r_a = jnp.linalg.qr(factors.a, mode="r")
    r_b = jnp.linalg.qr(jnp.swapaxes(factors.b, -1, -2), mode="r")
    return jnp.sqrt(((r_a @ jnp.swapaxes(r_b, -1, -2)) ** 2).sum((-1, -2)))


def product(factors: Factors) -> Array:
    """``a @ b`` (..., in, out)."""
    return factors.a @ factors.b


def aggregation_error(deltas: Tree, weights: Array) -> dict[str, Array]:
    """Stacked deltas (n, ...) -> how far mean(a) mean(b) is from the mean of products, over all sites.

    "aggregation_error": |sum_i p_i (a_i - mean a)(b_i - mean b)|_F; "aggregation_error_relative": over the norm of
    the mean of products (0 where that is 0).
    """
    pairs = factors_of(deltas).values()
    missing = sum((product_norm(residual(f, weights)) ** 2).sum() for f in pairs)
    whole = sum((product_norm(stack(f, weights)) ** 2).sum() for f in pairs)
    relative = jnp.where(whole > 0, jnp.sqrt(missing / jnp.where(whole > 0, whole, 1)), 0)
    return {"aggregation_error": jnp.sqrt(missing), "aggregation_error_relative": relative}


def collinearity(start: Factors, now: Factors) -> Array:
    """Squared cosine (...) between what the change of a and what the change of b do to the update ``a @ b``.

    <S, L>^2 / ((|S|^2 + d)(|L|^2 + d)) with S = (a - a_0) b_0, L = a_0 (b - b_0) and d = ``DAMPING`` |a_0 b_0|^2, so
    that changes below a hundredth of the update count softly; 0 where the update is 0.  Products of rank x rank only.
    """
    (a, b), (a_0, b_0) = now, start
    gram_a, gram_b = _gram(a_0), _gram(jnp.swapaxes(b_0, -1, -2))
    moved_a, moved_b = a - a_0, jnp.swapaxes(b - b_0, -1, -2)
    inner = ((jnp.swapaxes(a_0, -1, -2) @ moved_a) * jnp.swapaxes(b_0 @ moved_b, -1, -2)).sum((-1, -2))
    of_a, of_b = (_gram(moved_a) * gram_b).sum((-1, -2)), (gram_a * _gram(moved_b)).sum((-1, -2))
    damping = DAMPING * (gram_a * gram_b).sum((-1, -2))
    below = (of_a + damping) * (of_b + damping)
    return jnp.where(damping > 0, inner**2 / jnp.where(damping > 0, below, 1), 0)


def _gram(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2) @ x


def fair_correction(factors: Factors, weights: Array, ridge: float) -> Array:
    """Change of mean(b) (..., r, out) for which mean(a)(mean(b) + change) is nearest to the mean of products.

    Ridge solution (a'a + ridge I)^-1 a'R with a = mean(a), R the residual in factored form (LoRA-FAIR).
    """
    a, _ = mean(factors, weights)
    rest = residual(factors, weights)
    gram = jnp.swapaxes(a, -1, -2) @ a + ridge * jnp.eye(a.shape[-1], dtype=a.dtype)
    return jnp.linalg.solve(gram, (jnp.swapaxes(a, -1, -2) @ rest.a) @ rest.b)


def keep_rank(factors: Factors, rank: Array) -> Factors:
    """Zero all but the first ``rank`` () columns of a and rows of b; shapes stay."""
    kept = jnp.arange(factors.a.shape[-1]) < rank
    return Factors(jnp.where(kept, factors.a, 0), jnp.where(kept[:, None], factors.b, 0))


def _small_svd(factors: Factors) -> tuple[Array, Array, Array, Array, Array]:
    q_a, r_a = jnp.linalg.qr(factors.a)
    q_b, r_b = jnp.linalg.qr(jnp.swapaxes(factors.b, -1, -2))
    u, s, v = jnp.linalg.svd(r_a @ jnp.swapaxes(r_b, -1, -2), full_matrices=False)
    return q_a, q_b, u, s, v


def _names(delta: Tree, kind: str) -> frozenset[str]:
    found = []
    for pair in factors_of(delta):
        head, _, last = pair.rpartition("/")
        found.append("/".join(filter(None, [head, kind + last.removeprefix("ab")])))
    return frozenset(found)


def _name(found: re.Match, kind: str) -> str:
    return "/".join(filter(None, [found[1], kind + (found[2] or "")]))
