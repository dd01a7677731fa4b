"""Gradients of single logits in what adapters train, and the tangent kernel that they make."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.settings.analyze.kernel import KernelConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers, open_start
from medvfm_jax.theory.tangent_kernel import KernelSummary, summarise_kernel
from medvfm_jax.types import IGNORE, UNANNOTATED, Batch, Params, Prediction

LARGEST = 2 * 2**30  # bytes of all gradients of one adapter


class AdapterKernel(NamedTuple):
    """Of one adapter at its start.

    Attributes:
        adapter: name of the system.
        trained: numbers that it trains.
        seconds: that its gradients took, compilation included.
        summary: what its kernel predicts.
    """

    adapter: str
    trained: int
    seconds: float
    summary: KernelSummary


class KernelResult(NamedTuple):
    """What was found.

    Attributes:
        model: its name.
        data: name of the dataset.
        images: whose logits were looked at.
        adapters: the steepest first.
    """

    model: str
    data: str
    images: int
    adapters: tuple[AdapterKernel, ...]


def analyze_kernel(config: KernelConfig, say: Callable[[str], None] = lambda text: None) -> KernelResult:
    """Compare what adapters can learn from a few images, by their empirical neural tangent kernels.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        For each adapter the spectrum of its kernel, and how fast it should learn.

    Raises:
        BadConfig: gradients that need more than 2 GiB.
        NoKernel: outputs that do not depend on what is trained, or are not finite.
        MedvfmError: settings, data or weights that do not fit.
    """
    found = []
    for adapter in config.adapters:
        opened = open_start(config.training_of(adapter, config.data), config.cases, say)
        start = time.monotonic()
        summary = kernel_of(
            opened, outputs=config.outputs, ridge=config.ridge, seed=config.seed,
            tell=lambda text, name=adapter: say(f"{name}: {text}"),
        )  # fmt: skip
        found.append(AdapterKernel(adapter, opened.delta.size, time.monotonic() - start, summary))
    found.sort(key=lambda one: -one.summary.slope)
    return KernelResult(opened.model, opened.data, len(opened.batches), tuple(found))


def kernel_of(
    opened: TrainedNumbers,
    *,
    outputs: int,
    ridge: float,
    seed: int,
    tell: Callable[[str], None] = lambda text: None,
) -> KernelSummary:
    """The tangent kernel of some logits of each image.

    Args:
        opened: model with its adapter.
        outputs: logits of each image.
        ridge: see ``summarise_kernel``.
        seed: of their choice.
        tell: told of each image.

    Returns:
        What the kernel predicts.

    Raises:
        BadConfig: gradients that need more than 2 GiB.
        NoKernel: outputs that do not depend on what is trained, or are not finite.
    """
    needed = outputs * len(opened.batches) * opened.delta.size * 8
    if needed > LARGEST:
        raise BadConfig(
            f"{opened.delta.size:,} numbers are trained, and their gradients need {needed / 2**30:.1f} GiB of at most "
            f"{LARGEST / 2**30:.0f}; give fewer --outputs or --cases, or a smaller adapter."
        )

    @jax.jit
    def of_one(params: Params, numbers: Array, image: Batch, index: Array) -> tuple[Array, Array]:
        return jax.value_and_grad(lambda at: _logits(opened.predict(params, at, image))[index])(numbers)

    rows, outputs_of, labels_of = [], [], []
    for number, image in enumerate(opened.batches, 1):
        chosen = chosen_outputs(image, outputs, seed)
        # One call for each: in a loop within the program XLA's CPU convolutions are several times slower.
        found = [of_one(opened.params, opened.delta, image, index) for index in chosen]
        rows.append(np.stack([np.asarray(gradient, np.float64) for _, gradient in found]))
        outputs_of.append(np.array([float(logit) for logit, _ in found]))
        labels_of.append(np.asarray(image.target, np.float64).reshape(-1)[chosen])
        tell(f"image {number} of {len(opened.batches)}")
    gradients = np.concatenate(rows)
    kernel = gradients @ gradients.T
    return summarise_kernel(kernel, np.concatenate(outputs_of), np.concatenate(labels_of), ridge=ridge)


def _logits(prediction: Prediction) -> Array:
    """Promptable: of each prompt's first mask."""
    logits = prediction.logits if prediction.iou is None else prediction.logits[:, 0]
    return logits.reshape(-1).astype(jnp.float32)


def chosen_outputs(image: Batch, count: int, seed: int) -> NDArray[np.int64]:
    """Which logits of an image are looked at: half where an object is, if there are as many.

    Args:
        image: of a batch.
        count: how many.
        seed: of the choice.

    Returns:
        Indices into the flat target, without those that are ignored, unannotated or of padding.
    """
    target = np.asarray(image.target)
    weight = np.asarray(image.weight).reshape(
        *np.shape(image.weight), *[1] * (target.ndim - np.ndim(image.weight))
    )
    known = ((target != IGNORE) & (target != UNANNOTATED) & (weight > 0)).reshape(-1)
    inside = np.flatnonzero(known & (target.reshape(-1) > 0.5))
    outside = np.flatnonzero(known & (target.reshape(-1) <= 0.5))
    rng = np.random.default_rng(seed)
    half = min(len(inside), max(count // 2, count - len(outside)))
    rest = min(len(outside), count - half)
    parts = [rng.choice(part, n, replace=False) for part, n in ((inside, half), (outside, rest))]
    return np.sort(np.concatenate(parts))
