"""Products with second derivatives of a loss, and what random ones say of the spectrum (stochastic Lanczos quadrature).

The products take two passes backwards and none forwards, as convolutions on a CPU have no other
(``models.convolution_gradient``).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError

Operator = Callable[[NDArray], NDArray]


class NoCurvature(MedvfmError, ValueError):
    """Second derivatives that are 0 or not finite, of which there is no spectrum."""


def hessian_product(loss: Callable[[Any], Array], at: Any, v: Any) -> Any:
    """H v, the derivative of the gradient along v.

    Args:
        loss: (p,), or a tree of arrays, -> ().
        at: where it is taken.
        v: as ``at``.

    Returns:
        As ``at``.

    References:
        Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147.
    """

    def along(x: Any) -> Array:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(loss)(x), v)))

    return jax.grad(along)(at)


def gauss_newton_product(
    predict: Callable[[Array], Array], loss: Callable[[Array], Array], at: Array, v: Array
) -> Array:
    """J' L J v: the Hessian without the curvature of the model, L that of the loss in its outputs.

    Positive semi-definite where the loss is convex in the outputs.

    Args:
        predict: (p,) -> outputs, an array or a tree of them; J is its Jacobian.
        loss: outputs -> ().
        at: (p,), where it is taken.
        v: (p,).

    Returns:
        (p,).

    References:
        Schraudolph 2002, https://doi.org/10.1162/08997660260028683; Martens 2020, https://arxiv.org/abs/1412.1193.
    """
    outputs, transposed = jax.vjp(predict, at)
    nothing = jax.tree.map(jnp.zeros_like, outputs)
    # J'u is linear in u, so that its own transpose is u -> J u
    (moved,) = jax.vjp(lambda u: transposed(u)[0], nothing)[1](v)
    (curved,) = jax.vjp(lambda z: jax.grad(loss)(z), outputs)[1](moved)  # L is symmetric
    return transposed(curved)[0]


class Spectrum(NamedTuple):
    """Of a symmetric matrix that is known by its products.

    Attributes:
        size: n, of the n x n matrix.
        largest: the largest eigenvalues found, the largest first.
        smallest: the smallest one found.
        trace: estimate without bias.
        trace_error: its standard error over probes; NaN with one.
        negative: share of the probes' mass at eigenvalues below -1e-6 of the largest magnitude.
        values: (probes * iterations,), where the spectral density has its stems, ascending.
        weights: their heights, which sum to 1.
        products: that were taken.
    """

    size: int
    largest: tuple[float, ...]
    smallest: float
    trace: float
    trace_error: float
    negative: float
    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    products: int


def lanczos(operator: Operator, start: NDArray, iterations: int) -> tuple[NDArray, NDArray]:
    """Ritz values of a symmetric matrix in the Krylov space of a vector, and the vector's mass at each.

    Every new vector is made orthogonal to all before it, twice, so that no eigenvalue appears again.

    Args:
        operator: (n,) -> (n,).
        start: (n,), not 0.
        iterations: products at most; fewer where the space is used up.

    Returns:
        values (m,) ascending, and weights (m,) that sum to 1: start' f(A) start / |start|^2 is about
        sum weights * f(values), exactly for polynomials of degree 2 m - 1.

    References:
        Golub and Meurant 2009, Matrices, Moments and Quadrature, https://doi.org/10.1515/9781400833887.
    """
    basis = [np.asarray(start, np.float64) / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    scale = 0.0
    for _ in range(min(iterations, len(start))):
        new = np.asarray(operator(basis[-1]), np.float64)
        diagonal.append(float(new @ basis[-1]))
        scale = max(scale, float(np.linalg.norm(new)))
        for _ in range(2):
            for vector in basis:
                new = new - (new @ vector) * vector
        length = float(np.linalg.norm(new))
        if length <= 1e-10 * scale:
            break
        beside.append(length)
        basis.append(new / length)
    m = len(diagonal)
    inner = np.diag(diagonal) + np.diag(beside[: m - 1], 1) + np.diag(beside[: m - 1], -1)
    values, vectors = np.linalg.eigh(inner)
    return values, vectors[0] ** 2


def estimate_spectrum(
    operator: Operator, size: int, *, probes: int = 4, iterations: int = 10, seed: int = 0, largest: int = 3
) -> Spectrum:
    """Trace, extreme eigenvalues and spectral density of a symmetric matrix from its products with random signs.

    Args:
        operator: (n,) -> (n,), the product.
        size: n.
        probes: vectors of random signs; the trace's variance is 2 (|A|^2 - sum a_ii^2) over their number.
        iterations: products of each.
        seed: of the signs.
        largest: how many eigenvalues to tell.

    Returns:
        Estimates; with as many iterations as the matrix has different eigenvalues they are exact but for the probes.

    Raises:
        NoCurvature: all products are 0, or one is not finite.

    References:
        Hutchinson 1990, https://doi.org/10.1080/03610919008812866 (trace); Ubaru, Chen and Saad 2017,
        https://doi.org/10.1137/16M1104974 (stochastic Lanczos quadrature); Ghorbani et al. 2019,
        https://arxiv.org/abs/1901.10159 (spectral density of networks).
    """
    rng = np.random.default_rng(seed)
    values, weights, traces, taken, best = [], [], [], 0, ()
    for _ in range(probes):
        signs = rng.choice((-1.0, 1.0), size)
        found, mass = lanczos(_finite(operator), signs, iterations)
        taken += len(found)
        traces.append(size * float(found @ mass))
        best = max(best, tuple(found[::-1][:largest]))
        values.append(found)
        weights.append(mass / probes)
    every, heights = np.concatenate(values), np.concatenate(weights)
    reach = np.abs(every).max()
    if reach == 0:
        raise NoCurvature(
            "Every product with the second derivatives is 0: the loss does not depend on what is trained at this "
            "point; give --run with a trained delta, or another --adapter."
        )
    order = np.argsort(every)
    error = float(np.std(traces, ddof=1) / probes**0.5) if probes > 1 else float("nan")
    negative = float(heights[every < -1e-6 * reach].sum())
    return Spectrum(
        size, tuple(map(float, best)), float(every.min()), float(np.mean(traces)), error, negative, every[order],
        heights[order], taken,
    )  # fmt: skip


def _finite(operator: Operator) -> Operator:
    def checked(v: NDArray) -> NDArray:
        product = np.asarray(operator(v))
        if not np.isfinite(product).all():
            raise NoCurvature(
                "A product with the second derivatives is not finite; check the data (medvfm check) and the weights."
            )
        return product

    return checked
