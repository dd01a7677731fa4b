"""Losses of images on which only some of the classes were annotated: what was not is among the background there.

Shapes, for every loss here: un-batched logits (C, h, w), C >= 2, of exclusive classes (volumes have one axis more),
and a target (h, w) of class indices or IGNORE, on which all was annotated, or `Shares` (C, h, w), in which
UNANNOTATED stands for a class that nobody looked for.  ``valid`` (h, w) bool says which pixels count.  p is the
softmax of the logits, y the target, L the annotated foreground classes.  The value is a scalar.
"""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.losses.segmentation import LossShapeMismatch, Shares, Target
from medvfm_jax.types import IGNORE, UNANNOTATED


def _aligned(logits: Array, target: Target, valid: Array | None) -> tuple[Array, Array, Array, Array]:
    """-> logits (C, n), shares (C, n) with 0 where unannotated, unannotated (C, n) bool, weights of pixels (n,)."""
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes, space = logits.shape[0], logits.shape[1:]
    if isinstance(target, Shares):
        share = jnp.asarray(target.of_class, logits.dtype)
    else:
        index = jnp.asarray(target)
        share = jnp.where(index == IGNORE, IGNORE, jax.nn.one_hot(index, classes, axis=0, dtype=logits.dtype))
    if share.shape != logits.shape or classes < 2:
        raise LossShapeMismatch(
            f"the logits have shape {logits.shape} and the target has shape {share.shape}; partial labels need logits "
            "(C, h, w) of at least two exclusive classes and shares of the same shape, or class indices (h, w)"
        )
    unannotated, counted = share == UNANNOTATED, share[0] != IGNORE
    weight = counted.astype(logits.dtype)
    if valid is not None:
        weight = weight * jnp.broadcast_to(jnp.asarray(valid, logits.dtype), space)
    share = jnp.where(counted & ~unannotated, share, 0)
    flat = (x.reshape(classes, -1) for x in (logits, share, unannotated))
    return *flat, weight.reshape(-1)


def _marginal_log(logits: Array, unannotated: Array) -> Array:
    """Logits (C, n) -> log q (C, n): in row 0 that of the background and all that is unannotated together."""
    log_p = jax.nn.log_softmax(logits, axis=0)
    together = unannotated.at[0].set(True)
    return log_p.at[0].set(jax.nn.logsumexp(log_p, axis=0, where=together))


def _mean(values: Array, weight: Array) -> Array:
    """Weighted mean over pixels; 0 where no pixel counts."""
    total = weight.sum()
    return jnp.where(total > 0, (values * weight).sum() / jnp.where(total > 0, total, 1), 0)


def _over(values: Array, chosen: Array) -> Array:
    """Mean over the chosen classes; 0 for none."""
    count = chosen.sum()
    return jnp.where(chosen, values, 0).sum() / jnp.maximum(count, 1)


def marginal_cross_entropy(logits: Array, target: Target, valid: Array | None = None) -> Array:
    """Mean cross-entropy of q: q_c = p_c for c in L, q_bg = p_bg + sum of p_c over c not in L.

    With all classes annotated it is the ordinary cross-entropy; probability moved among the background and
    unannotated classes changes nothing.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.

    Returns:
        () loss in nats; 0 where no pixel counts.

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Shi et al. 2021 (marginal loss), https://arxiv.org/abs/2007.03868
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    nll = -_marginal_log(z, unannotated)
    return _mean(jnp.where(share > 0, share * nll, 0).sum(0), weight)


def marginal_dice(
    logits: Array, target: Target, valid: Array | None = None, *, squared: bool = False, smooth: float = 1.0
) -> Array:
    """Soft Dice loss of q, mean over the background and the annotated classes.

    q as in `marginal_cross_entropy`; overlap and sizes as in `losses.dice`, which it is with all classes annotated.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.
        squared: squared sizes, see `losses.dice`.
        smooth: see `losses.dice`.

    Returns:
        () loss.

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Shi et al. 2021 (marginal loss), https://arxiv.org/abs/2007.03868
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    q = jnp.where(unannotated, 0, jnp.exp(_marginal_log(z, unannotated)))
    both = q * share if squared else jnp.minimum(q, share)
    sizes = q**2 + share**2 if squared else q + share
    overlap, size = (both * weight).sum(-1), (sizes * weight).sum(-1)
    annotated = ~unannotated.any(-1)
    return _over(1 - (2 * overlap + smooth) / (size + smooth), annotated)


def _excluded(share: Array, unannotated: Array) -> Array:
    """e (C, n): where a class cannot be: 1 - y_c for c in L; for others and the background where something is in L."""
    elsewhere = jnp.broadcast_to(1 - share[:1], share.shape)
    is_other = unannotated.at[0].set(True)
    return jnp.where(is_other, elsewhere, 1 - share)


def exclusion_dice(logits: Array, target: Target, valid: Array | None = None) -> Array:
    """Overlap of each class with where it cannot be: mean over classes of 2 Σ p e / (Σ p + Σ e).

    e_c = 1 - y_c for an annotated class; for all others and the background the union of what was annotated. It is 0
    if and only if no class has any probability where it cannot be.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.

    Returns:
        () loss.

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Shi et al. 2021 (exclusion loss), https://arxiv.org/abs/2007.03868
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    p, e = jax.nn.softmax(z, axis=0) * weight, _excluded(share, unannotated) * weight
    size = p.sum(-1) + e.sum(-1)
    return (2 * (p * e).sum(-1) / jnp.where(size > 0, size, 1)).mean()


def exclusion_cross_entropy(
    logits: Array, target: Target, valid: Array | None = None, *, epsilon: float = 1.0
) -> Array:
    """Mean over pixels of Σ_c e_c log(p_c + ε), with e as in `exclusion_dice`.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.
        epsilon: ε; with 1 the least value is 0, where no class has any probability where it cannot be.

    Returns:
        () loss.

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Shi et al. 2021 (exclusion loss), https://arxiv.org/abs/2007.03868
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    p, e = jax.nn.softmax(z, axis=0), _excluded(share, unannotated)
    return _mean((e * jnp.log(p + epsilon)).sum(0), weight)


def leaf_dice(
    logits: Array, target: Target, valid: Array | None = None, *, squared: bool = False, smooth: float = 1e-5
) -> Array:
    """1 - mean over all classes of 2 Σ y_c p_c / (Σ y_c + Σ p_c^k + s), y_c = 0 where pixels have no single class.

    Where a class is unannotated, a background pixel may be of either, so neither is rated; what is annotated is, and
    is kept from growing beyond its pixels. An image without a class teaches nothing of it.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.
        squared: k = 2 instead of 1.
        smooth: s.

    Returns:
        () loss.

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Fidon et al. 2021 (leaf-Dice), https://arxiv.org/abs/2107.03846
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    p = jax.nn.softmax(z, axis=0)
    leaf = share.at[0].set(jnp.where(unannotated.any(0), 0, share[0]))
    overlap = (leaf * p * weight).sum(-1)
    size = ((leaf + (p**2 if squared else p)) * weight).sum(-1)
    return 1 - (2 * overlap / (size + smooth)).mean()


def masked_binary(
    logits: Array, target: Target, valid: Array | None = None, *, smooth: float = 1e-5
) -> Array:
    """Mean over the annotated foreground classes of binary cross-entropy + soft Dice, each against all the rest.

    The logit of class c is z_c - z_0, so that c is more likely than not where it wins against the background: classes
    are still told by the largest logit. Unannotated classes have no part in it.

    Args:
        logits: (C, h, w).
        target: (h, w) of class indices, or `Shares` with UNANNOTATED.
        valid: (h, w) bool, pixels that count; None for all.
        smooth: of Dice, see `losses.dice`.

    Returns:
        () loss; 0 where no foreground class is annotated.

    Raises:
        LossShapeMismatch: other shapes.
    """
    z, share, unannotated, weight = _aligned(logits, target, valid)
    z, y, annotated = z[1:] - z[:1], share[1:], ~unannotated[1:].any(-1)
    entropy = jax.vmap(_mean, (0, None))(jax.nn.softplus(z) - y * z, weight)
    p = jax.nn.sigmoid(z)
    overlap, size = (jnp.minimum(p, y) * weight).sum(-1), ((p + y) * weight).sum(-1)
    return _over(entropy + 1 - (2 * overlap + smooth) / (size + smooth), annotated)
