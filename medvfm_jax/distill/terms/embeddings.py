"""Terms on the embeddings (h, w, c) of one image."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax import losses
from medvfm_jax.distill.terms.record import Compared, Sizes, is_semantic, pooled, shares_at
from medvfm_jax.types import IGNORE

AFFINITY_SIDE = 16  # of the map whose positions are compared with each other


def embedding(seen: Compared) -> Array:
    """Mean squared difference of the embeddings, without padding (MobileSAM; EdgeSAM leaves padding out)."""
    return losses.embedding_mse(*_both(seen), seen.valid)


def embedding_l1(seen: Compared) -> Array:
    """Mean absolute difference of the embeddings, without padding (TinySAM)."""
    student, teacher = _both(seen)
    return losses.weighted_mean(jnp.abs(student - teacher).mean(-1).ravel(), seen.valid.ravel())


def attention(seen: Compared) -> Array:
    """Difference of the maps of energy of the embeddings (attention transfer)."""
    return losses.attention_transfer(*_both(seen))


def importance(seen: Compared) -> Array:
    """Squared difference of the maps of the embeddings' fourth powers (EMKD's importance maps)."""
    return losses.attention_distance(*_both(seen), power=4)


def channels(seen: Compared) -> Array:
    """KL divergence over positions of each channel of the embeddings (channel-wise distillation)."""
    return losses.cwd(*_both(seen))


def pixel_affinity(seen: Compared) -> Array:
    """Squared difference of the similarities of an image's positions, of maps of at most 16 x 16 (structured)."""
    return losses.pixel_affinity(*(pooled(on_image(x, seen.valid), AFFINITY_SIDE) for x in _both(seen)))


def foreground(seen: Compared) -> Array:
    """Squared difference of the embeddings, labelled positions and background each by their mean (FGD)."""
    shares = shares_at(seen.target, seen.valid.shape)
    labelled = jnp.where(shares == IGNORE, 0.0, shares)
    mask = labelled[1:].sum(0) if is_semantic(seen) else labelled.max(0)
    return losses.mask_weighted(*_both(seen), mask, seen.valid)


def variation(seen: Compared) -> Array:
    """Squared difference of the similarity of each position to the mean of its class (IFVD)."""
    return _of_classes(losses.ifvd, seen)


def regions(seen: Compared) -> Array:
    """Squared difference of the similarities of the means of two classes (EMKD's region affinity)."""
    return _of_classes(losses.region_affinity, seen)


def generation(seen: Compared) -> Array:
    """Squared error of the teacher's embedding, generated from the student's with three quarters hidden (MGD)."""
    return losses.mgd(*_both(seen), seen.helpers["mgd"], seen.key)


def generator(key: Array, sizes: Sizes) -> dict[str, Array]:
    """What ``generation`` trains along."""
    return losses.mgd_init(key, sizes.embedding[-1], sizes.embedding[-1])


def memory(seen: Compared) -> Array:
    """KL divergence of the similarities to positions of other images (CIRKD's memory of pixels)."""
    student, teacher = (pooled(on_image(x, seen.valid), AFFINITY_SIDE) for x in _both(seen))
    return losses.cirkd_memory(
        student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), seen.memory
    )


def cosine(seen: Compared) -> Array:
    """Mean cosine similarity of the embeddings; no loss, told beside it.

    Args:
        seen: student and teacher on one image.

    Returns:
        Scalar, without a gradient.
    """
    return jax.lax.stop_gradient(losses.embedding_cosine(*_both(seen), seen.valid))


def error(seen: Compared) -> Array:
    """Squared error of the embedding, relative to the teacher's square; no loss, told beside it.

    Args:
        seen: student and teacher on one image.

    Returns:
        Scalar, without a gradient.
    """
    zero = jnp.zeros_like(seen.teacher.embedding)
    size = losses.embedding_mse(zero, seen.teacher.embedding, seen.valid)
    return jax.lax.stop_gradient(embedding(seen) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))


def on_image(features: Array, valid: Array) -> Array:
    """The features, zero on padding: equal in student and teacher, so that it adds no difference."""
    return features.astype(jnp.float32) * valid[..., None]


def _both(seen: Compared) -> tuple[Array, Array]:
    return seen.student.embedding, seen.teacher.embedding


def _of_classes(loss: object, seen: Compared) -> Array:
    """A loss of (student, teacher, class of each position, classes): of classes, or the mean over prompts of two."""
    shares = shares_at(seen.target, seen.valid.shape)
    student, teacher = _both(seen)
    if is_semantic(seen):
        index = jnp.where(shares[0] == IGNORE, IGNORE, shares.argmax(0))
        return jnp.where(seen.weight > 0, loss(student, teacher, index, len(shares)), 0.0)
    index = jnp.where(shares == IGNORE, IGNORE, shares > 0.5).astype(jnp.int32)
    values = jax.vmap(lambda one: loss(student, teacher, one, 2))(index)
    return losses.weighted_mean(values, seen.weight)
