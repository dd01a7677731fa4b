"""One direction out of the gradients of several tasks, from their Gram matrix alone.

Every rule maps G (N, N), G_ij = <g_i, g_j>, to weights w (N,); the direction is sum_i w_i g_i, so that no gradient is
touched until the end.  ``present`` (N,) bool says whose rows count; the others get weight 0.  All are pure and can be
jitted and mapped.  A gradient of zero is nobody's enemy: it changes nothing for the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

_STEPS, _HALVINGS = 1000, 60  # of the solver on the simplex, and of its line search


def _absent_are_zero(gram: Array, present: Array | None) -> tuple[Array, Array, Array]:
    """-> G with zeros where absent, present (N,) as numbers, how many there are."""
    gram = jnp.asarray(gram)
    here = jnp.ones(len(gram), gram.dtype) if present is None else present.astype(gram.dtype)
    # A row that is not there may hold anything, NaN too, which a product would keep.
    return jnp.where((here[:, None] * here) > 0, gram, 0), here, jnp.maximum(here.sum(), 1)


def pcgrad(gram: Array, key: Array, present: Array | None = None) -> Array:
    """PCGrad: each gradient loses its part against every other it conflicts with, in random order; then their mean.

    g_i <- g_i - <g_i, g_j> / |g_j|^2 g_j where the product is negative, with the others as they were.

    Args:
        gram: (N, N).
        key: of the order.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights; 1/N each without conflicts.

    References:
        Yu et al. 2020, algorithm 1 (with the mean in the place of the sum), https://arxiv.org/abs/2001.06782
    """
    gram, here, count = _absent_are_zero(gram, present)
    n = len(gram)
    squares = jnp.diagonal(gram)

    def projected(i: Array, key: Array) -> Array:
        def against(row: Array, j: Array) -> tuple[Array, None]:
            product = row @ gram[:, j]
            conflict = (product < 0) & (j != i) & (squares[j] > 0)
            part = jnp.where(conflict, product / jnp.where(squares[j] > 0, squares[j], 1), 0)
            return row.at[j].add(-part), None

        return jax.lax.scan(against, jnp.eye(n, dtype=gram.dtype)[i], jax.random.permutation(key, n))[0]

    rows = jax.vmap(projected)(jnp.arange(n), jax.random.split(key, n))
    return here @ rows / count


def cagrad(gram: Array, c: float = 0.4, present: Array | None = None) -> Array:
    """CAGrad: the direction d with the largest min_i <g_i, d> within |d - mean| <= c |mean|.

    With g_w = sum_i w_i g_i, w on the simplex minimising <g_w, mean> + c |mean| |g_w|, d = mean + c |mean| g_w / |g_w|.

    Args:
        gram: (N, N).
        c: how far from the mean, 0 to below 1; 0 is the mean.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights.

    References:
        Liu et al. 2021, https://arxiv.org/abs/2110.14048
    """
    gram, here, count = _absent_are_zero(gram, present)
    even = here / count
    w = conflict_averse_simplex(gram, c, here > 0)
    length, radius = _length(gram, w), c * _length(gram, even)
    return even + jnp.where(length > 0, radius / jnp.where(length > 0, length, 1), 0) * w


def conflict_averse_simplex(gram: Array, c: float, present: Array | None = None) -> Array:
    """The w of `cagrad`, on the simplex.

    Args:
        gram: (N, N).
        c: as there.
        present: (N,) bool; None for all.

    Returns:
        (N,) weights that sum to 1.
    """
    gram, here, count = _absent_are_zero(gram, present)
    even = here / count
    radius = c * _length(gram, even)

    def slope(w: Array) -> Array:
        length = _length(gram, w)
        return gram @ even + radius * gram @ w / jnp.where(length > 0, length, 1)

    return _least_on_simplex(slope, even, here > 0)


def mgda(gram: Array, present: Array | None = None) -> Array:
    """MGDA: the shortest vector in the convex hull of the gradients, a direction of descent for all, or 0.

    Args:
        gram: (N, N).
        present: (N,) bool; None for all.

    Returns:
        (N,) weights on the simplex.

    References:
        Sener and Koltun 2018, https://arxiv.org/abs/1810.04650
    """
    gram, here, count = _absent_are_zero(gram, present)
    return _least_on_simplex(lambda w: gram @ w, here / count, here > 0)


def nash_mtl(gram: Array, present: Array | None = None) -> Array:
    """Nash-MTL: the positive solution of G w = 1 / w, the bargain in which no task gains relatively more.

    It is the minimum of w'Gw / 2 - sum log w, found by damped Newton steps; 1e-10 of the mean squared length (1e-6 in
    float32) is added to the diagonal, so that there is one where gradients cancel, or are 0.

    Args:
        gram: (N, N).
        present: (N,) bool; None for all.

    Returns:
        (N,) weights; the length of the direction is sqrt(N) whatever the gradients' lengths are.

    References:
        Navon et al. 2022, https://arxiv.org/abs/2202.01017
    """
    gram, here, count = _absent_are_zero(gram, present)
    there, squares = here > 0, jnp.diagonal(gram)
    size = jnp.where(squares.sum() > 0, squares.sum() / count, 1)
    # An absent row is a task of its own, whose solution 1 is then dropped.
    ridge = max(1e-10, 8 * float(jnp.finfo(gram.dtype).eps))
    scaled = gram / size + jnp.diag(jnp.where(there, ridge, 1)).astype(gram.dtype)

    def step(w: Array, _: None) -> tuple[Array, None]:
        slope, curvature = scaled @ w - 1 / w, scaled + jnp.diag(1 / w**2)
        move = jnp.linalg.solve(curvature, slope)
        decrement = jnp.sqrt(jnp.maximum(slope @ move, 0))
        # The function is self-concordant: such a step never leaves the positive numbers.
        return w - move / jnp.where(decrement > 0.25, 1 + decrement, 1), None

    start = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(scaled), ridge))
    w, _ = jax.lax.scan(step, start, length=200)
    return jnp.where(there, w / jnp.sqrt(size), 0)


def imtl_g(gram: Array, present: Array | None = None) -> Array:
    """IMTL-G: weights that sum to 1, maybe negative, whose direction has equal projections on all gradients.

    <d, g_i> / |g_i| = constant. Where gradients depend on each other, the solution of least norm.

    Args:
        gram: (N, N).
        present: (N,) bool; None for all.  A gradient of zero counts as absent: nothing projects on it.

    Returns:
        (N,) weights.

    References:
        Liu et al. 2021 (ICLR), compared by Navon et al. 2022,
        https://arxiv.org/abs/2202.01017
    """
    gram, here, _ = _absent_are_zero(gram, present)
    n, there = len(gram), (here > 0) & (jnp.diagonal(gram) > 0)
    lengths = jnp.sqrt(jnp.where(there, jnp.diagonal(gram), 1))
    # Scaled by the lengths: unknowns are the weights times the lengths, and the common projection.
    cosine = jnp.where(
        there[:, None] & there, gram / (lengths[:, None] * lengths), jnp.eye(n, dtype=gram.dtype)
    )
    inverse = jnp.where(there, lengths.max() / lengths, 0)
    system = jnp.block(
        [[cosine, -there.astype(gram.dtype)[:, None]], [inverse[None], jnp.zeros((1, 1), gram.dtype)]]
    )
    right = jnp.zeros(n + 1, gram.dtype).at[-1].set(1)
    solution = jnp.linalg.lstsq(system, right)[0][:-1]
    w = jnp.where(there, solution * inverse, 0)
    total = w.sum()
    even = there / jnp.maximum(there.sum(), 1)
    return jnp.where(jnp.abs(total) > 1e-6, w / jnp.where(total != 0, total, 1), even.astype(gram.dtype))


def _length(gram: Array, w: Array) -> Array:
    square = w @ gram @ w
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _least_on_simplex(slope: Callable[[Array], Array], start: Array, there: Array) -> Array:
    """Minimise a convex function of slope (N,) on the simplex over ``there``, by moving mass from one to another.

    From the one with the largest slope that has mass to the one with the smallest, until the slope between them is 0
    (found by halving, so as exact as numbers are): for two tasks one step is the answer.
    """
    dtype = start.dtype
    tiny = 4 * jnp.finfo(dtype).eps

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, w, _ = state
        s = slope(w)
        giver = jnp.argmax(jnp.where(there & (w > 0), s, -jnp.inf))
        taker = jnp.argmin(jnp.where(there, s, jnp.inf))
        direction = jnp.zeros_like(w).at[taker].add(1).at[giver].add(-1)

        def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            low, high = bounds
            middle = (low + high) / 2
            falling = slope(w + middle * direction) @ direction < 0
            return (jnp.where(falling, middle, low), jnp.where(falling, high, middle)), None

        whole_falls = slope(w + w[giver] * direction) @ direction <= 0
        (low, high), _ = jax.lax.scan(halve, (jnp.zeros((), dtype), w[giver]), length=_HALVINGS)
        moved = jnp.where(whole_falls, w[giver], (low + high) / 2)
        gap = s[giver] - s[taker]
        new = jnp.where(gap > tiny * jnp.abs(s).max(), jnp.maximum(w + moved * direction, 0), w)
        going = (gap > tiny * jnp.abs(s).max()) & (jnp.abs(new - w).max() > tiny)
        return count + 1, new, going

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < _STEPS) & state[2]

    _, w, _ = jax.lax.while_loop(unfinished, step, (jnp.int32(0), start, jnp.bool_(True)))
    return w / jnp.maximum(w.sum(), tiny)
