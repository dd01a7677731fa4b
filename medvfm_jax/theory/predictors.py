"""Predictions of how well an adapter will do, from a few images at its start; each a name and a pure function."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from medvfm_jax.catalog import Catalog
from medvfm_jax.theory.gradient_moments import moments
from medvfm_jax.theory.runs.kernel import kernel_of
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers
from medvfm_jax.types import MedvfmError


class UnknownPredictor(MedvfmError, ValueError):
    """A name of a predictor that does not exist."""


class Predictor(NamedTuple):
    """A tool whose numbers are put beside what was measured.

    Attributes:
        scores: (model with its adapter at the start) -> name -> (value, standard error or None); a larger value
            predicts a better model.
        description: why it should.
    """

    scores: Callable[[TrainedNumbers], dict[str, tuple[float, float | None]]]
    description: str


def _size(opened: TrainedNumbers) -> dict[str, tuple[float, float | None]]:
    return {"trained": (float(opened.delta.size), None)}


def _gradient(opened: TrainedNumbers) -> dict[str, tuple[float, float | None]]:
    gradient = jax.jit(
        jax.grad(lambda at, params, image: opened.rate(opened.predict(params, at, image), image))
    )
    each = ({"": np.asarray(gradient(opened.delta, opened.params, image))[None]} for image in opened.batches)
    found = moments(each)[""]
    gain = float(np.vdot(found.mean, found.mean))
    return {
        "gain": (gain, None),
        "sign_gain": (float(np.abs(found.mean).sum(dtype=np.float64)), None),
        "signal": (found.signal, None),
        "fisher": (found.fisher, found.fisher_error),
    }


def _kernel(opened: TrainedNumbers) -> dict[str, tuple[float, float | None]]:
    found = kernel_of(opened, outputs=16, ridge=0.01, seed=0)
    return {
        "slope": (found.slope, None),
        "alignment": (found.alignment, None),
        "removed": (1 - found.left[-1], None),
    }


PREDICTORS: Catalog[Predictor] = Catalog(
    "predictor",
    {
        "size": Predictor(_size, "more trained numbers fit more; the tool that others must beat"),
        "gradient": Predictor(
            _gradient,
            "a steeper loss in what is trained falls faster: by plain gradient descent (gain; signal, without noise; "
            "Fisher information) or by steps of one size for all numbers, as Adam's first (sign_gain)",
        ),
        "kernel": Predictor(
            _kernel,
            "the tangent kernel says how fast a linearised model learns these images (slope, alignment)",
        ),
    },
    UnknownPredictor,
)
