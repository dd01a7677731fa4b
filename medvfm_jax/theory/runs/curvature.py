"""The loss of a model on a few images, and how curved it is in what is trained."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.settings.analyze.curvature import CurvatureConfig
from medvfm_jax.theory.curvature import Spectrum, estimate_spectrum, gauss_newton_product, hessian_product
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers, open_start, open_trained
from medvfm_jax.types import Batch, Params, Prediction


class CurvatureResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        images: whose mean loss is looked at.
        loss: that mean.
        trained: numbers that are trained.
        seconds: compilation included.
        spectrum: of the second derivatives.
    """

    model: str
    data: str
    images: int
    loss: float
    trained: int
    seconds: float
    spectrum: Spectrum

    @property
    def largest_rate(self) -> float:
        """Learning rate above which plain gradient descent leaves this point, 2 over the largest eigenvalue.

        Infinite where none is positive. Cohen et al. 2021, https://arxiv.org/abs/2103.00065, on what happens near it.
        """
        top = self.spectrum.largest[0]
        return 2 / top if top > 0 else float("inf")


def analyze_curvature(
    config: CurvatureConfig, say: Callable[[str], None] = lambda text: None
) -> CurvatureResult:
    """Eigenvalues and spectral density of the second derivatives of the loss in what is trained.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Estimates, with their cost.

    Raises:
        BadConfig: a run of another command, or data that changed since.
        NoCurvature: second derivatives that are all 0 or not finite.
        MedvfmError: settings, data or weights that do not fit.
    """
    if config.run is None:
        opened = open_start(config.training_of(config.adapter, str(config.data)), config.cases, say)
    else:
        changes = {} if config.data is None else {"data": config.data}
        opened = open_trained(config.run, config.cases, say, offline=config.offline, **changes)
    start = time.monotonic()
    products = config.probes * config.iterations
    say(f"{opened.delta.size:,} numbers: at most {products} products with {len(opened.batches)} images each")
    operator, losses = _operator(opened, config.product)
    found = estimate_spectrum(
        operator, opened.delta.size, probes=config.probes, iterations=config.iterations, seed=config.seed
    )
    return CurvatureResult(
        opened.model, opened.data, len(opened.batches), float(np.mean(losses)), opened.delta.size,
        time.monotonic() - start, found,
    )  # fmt: skip


def _operator(opened: TrainedNumbers, kind: str) -> tuple[Callable[[NDArray], NDArray], list[float]]:
    @jax.jit
    def product(params: Params, at: Array, image: Batch, v: Array) -> Array:
        def predict(numbers: Array) -> Prediction:
            return opened.predict(params, numbers, image)

        def rate(prediction: Prediction) -> Array:
            return opened.rate(prediction, image)

        if kind == "hessian":
            return hessian_product(lambda numbers: rate(predict(numbers)), at, v)
        return gauss_newton_product(predict, rate, at, v)

    @jax.jit
    def loss(params: Params, at: Array, image: Batch) -> Array:
        return opened.rate(opened.predict(params, at, image), image)

    def operator(v: NDArray) -> NDArray:
        v, total = jnp.asarray(v, opened.delta.dtype), np.zeros(len(v))
        for image in opened.batches:
            total += np.asarray(product(opened.params, opened.delta, image, v), np.float64)
        return total / len(opened.batches)

    return operator, [float(loss(opened.params, opened.delta, image)) for image in opened.batches]
