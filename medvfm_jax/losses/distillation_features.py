"""Distillation of feature maps (h, w, c): embedding regression, FitNets, attention transfer, CWD, PKD, MGD.

Every function is (student, teacher, ...) -> scalar; no gradient flows into the teacher. Where the channels
of the two may differ, the docstring says so; all others need equal shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.losses.predictions import weighted_mean

_TINY = 1e-12


def _pair(student: Array, teacher: Array) -> tuple[Array, Array]:
    student = jnp.asarray(student, jnp.float32)
    return student, jax.lax.stop_gradient(jnp.asarray(teacher, jnp.float32))


def embedding_mse(student: Array, teacher: Array, valid: Array | None = None) -> Array:
    """Mean squared difference of embeddings over the counted positions: the objective of decoupled distillation.

    Args:
        student: embedding (h, w, c).
        teacher: embedding (h, w, c).
        valid: (h, w) bool, positions that count: every one in MobileSAM (None), those that lie on the image and not on
            its padding in EdgeSAM.

    Returns:
        () loss.

    References:
        Zhang et al. 2023 (MobileSAM), https://arxiv.org/abs/2306.14289; Zhou et al. 2023 (EdgeSAM),
        https://arxiv.org/abs/2312.06660
    """
    student, teacher = _pair(student, teacher)
    squared = jnp.mean((student - teacher) ** 2, axis=-1)
    return weighted_mean(squared.ravel(), None if valid is None else jnp.ravel(valid))


def embedding_cosine(student: Array, teacher: Array, valid: Array | None = None) -> Array:
    """Mean cosine similarity of the counted positions; 1 is perfect.

    Args:
        student: embedding (h, w, c).
        teacher: embedding (h, w, c).
        valid: (h, w) bool, positions that count; None for all.

    Returns:
        () similarity, no loss: larger is better.
    """
    student, teacher = _pair(student, teacher)
    norms = jnp.sum(student**2, -1) * jnp.sum(teacher**2, -1)
    cosine = jnp.sum(student * teacher, -1) * jax.lax.rsqrt(jnp.maximum(norms, _TINY))
    return weighted_mean(cosine.ravel(), None if valid is None else jnp.ravel(valid))


def fitnets(student: Array, teacher: Array, regressor: Array | None = None) -> Array:
    """½ mean over positions of ‖r(s) - t‖².

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t).
        regressor: r (c_s, c_t), a 1×1 convolution that is trained along; None needs equal channels.

    Returns:
        () loss.

    References:
        Romero et al., ICLR 2015, there summed over positions, https://arxiv.org/abs/1412.6550
    """
    student, teacher = _pair(student, teacher)
    if regressor is not None:
        student = student @ regressor
    return 0.5 * jnp.mean(jnp.sum((student - teacher) ** 2, axis=-1))


def attention_transfer(student: Array, teacher: Array, *, power: int = 2) -> Array:
    """Mean over positions of (Q_s / ‖Q_s‖ - Q_t / ‖Q_t‖)², Q = Σ_c |F_c|^power.

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t); channels may differ.
        power: exponent of the channels.

    Returns:
        () loss; the published weight is about 1000.

    References:
        Zagoruyko and Komodakis, ICLR 2017, https://arxiv.org/abs/1612.03928, and their code, which takes the mean where
        the paper writes a norm.
    """
    return attention_distance(student, teacher, power=power) / np.prod(np.shape(student)[:-1])


def attention_distance(student: Array, teacher: Array, *, power: int) -> Array:
    """‖Q_s / ‖Q_s‖ - Q_t / ‖Q_t‖‖², Q = Σ_c |F_c|^power: `attention_transfer` summed over positions.

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t); channels may differ.
        power: exponent of the channels, 4 for EMKD's importance maps.

    Returns:
        () loss; EMKD's weight is 0.9.

    References:
        Qin et al., IEEE TMI 2021 (EMKD), https://arxiv.org/abs/2108.09987
    """

    def attention(features: Array) -> Array:
        # Scaled to a largest value of 1 first: the fourth power of small features would drown in rounding.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(features)))
        q = jnp.mean(jnp.abs(features / jnp.maximum(largest, _TINY)) ** power, axis=-1).ravel()
        return q * jax.lax.rsqrt(jnp.sum(q**2) + _TINY)

    student, teacher = _pair(student, teacher)
    return jnp.sum((attention(student) - attention(teacher)) ** 2)


def cwd(student: Array, teacher: Array, *, temperature: float = 4.0) -> Array:
    """Channel-wise distillation: (τ² / c) Σ_c KL over positions of softmax(t_c / τ) ‖ softmax(s_c / τ).

    Adding a constant to a channel changes nothing.

    Args:
        student: features or logits (h, w, c).
        teacher: (h, w, c).
        temperature: τ.

    Returns:
        () loss; published weights: 50 for features, 3 for logits.

    References:
        Shu et al., ICCV 2021, https://arxiv.org/abs/2011.13256
    """
    student, teacher = (rearrange(x, "h w c -> c (h w)") / temperature for x in _pair(student, teacher))
    log_s, log_t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))


def pkd(student: Array, teacher: Array) -> Array:
    """½ mean squared difference of the normalised channels.

    Each channel is normalised over all other axes. Equals the mean over channels of 1 - Pearson's r, so
    scale and offset of a channel do not matter.

    Args:
        student: features (..., c); pass a batch (B, h, w, c) to normalise over the batch as in the paper.
        teacher: features (..., c).

    Returns:
        () loss.

    References:
        Cao et al., NeurIPS 2022, https://arxiv.org/abs/2207.02039
    """

    def normalised(features: Array) -> Array:
        flat = features.reshape(-1, features.shape[-1])
        centred = flat - flat.mean(0)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + _TINY)

    student, teacher = _pair(student, teacher)
    return 0.5 * jnp.mean((normalised(student) - normalised(teacher)) ** 2)


def mgd_init(key: Array, student_channels: int, teacher_channels: int) -> dict[str, Array]:
    """Start of MGD's generator: a 1×1 `align` and two 3×3 convolutions.

    Args:
        key: for the numbers.
        student_channels: c_s.
        teacher_channels: c_t.

    Returns:
        {name: array}, trained along with the student.

    References:
        Yang et al., ECCV 2022, https://arxiv.org/abs/2205.01529
    """
    keys = jax.random.split(key, 3)
    shapes = {
        "align": (1, 1, student_channels, teacher_channels),
        "first": (3, 3, teacher_channels, teacher_channels),
        "second": (3, 3, teacher_channels, teacher_channels),
    }
    he = jax.nn.initializers.he_normal()
    return {name: he(k, shape, jnp.float32) for k, (name, shape) in zip(keys, shapes.items())}


def mgd(
    student: Array,
    teacher: Array,
    generator: dict[str, Array],
    key: Array,
    *,
    mask_ratio: float = 0.75,
    weight: float = 2e-5,
) -> Array:
    """Masked generative distillation: weight · ‖G(align(s) · mask) - t‖², positions masked.

    The student must hold enough to rebuild the teacher's features where it is hidden.

    Args:
        student: features (h, w, c_s).
        teacher: features (h, w, c_t).
        generator: G, from `mgd_init`, trained along.
        key: for the mask.
        mask_ratio: share of the positions that are hidden; the default is that for segmentation.
        weight: the default is that for segmentation.

    Returns:
        () loss.

    References:
        Yang et al., ECCV 2022, https://arxiv.org/abs/2205.01529
    """

    student, teacher = _pair(student, teacher)
    seen = jax.random.bernoulli(key, 1.0 - mask_ratio, (*student.shape[:2], 1))
    hidden = _convolve(student, generator["align"]) * seen
    rebuilt = _convolve(jax.nn.relu(_convolve(hidden, generator["first"])), generator["second"])
    return weight * jnp.sum((rebuilt - teacher) ** 2)


def _convolve(x: Array, kernel: Array) -> Array:
    """x (h, w, in), kernel (k, k, in, out) -> (h, w, out), zeros around the map.

    A product for each tap of the kernel: XLA's gradient of a convolution is slow in a loop on a CPU.
    """
    (h, w, _), reach = x.shape, len(kernel) // 2
    padded = jnp.pad(x, [(reach, reach), (reach, reach), (0, 0)])
    return sum(
        padded[i : i + h, j : j + w] @ tap for i, row in enumerate(kernel) for j, tap in enumerate(row)
    )
