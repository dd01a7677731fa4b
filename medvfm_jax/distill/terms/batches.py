"""Terms on the embeddings (B, h, w, c) of a whole batch: how its images relate."""

from jax import Array

from medvfm_jax import losses
from medvfm_jax.distill.terms.embeddings import on_image
from medvfm_jax.distill.terms.record import Compared, pooled

PIXELS_SIDE = 8  # of the maps whose positions are compared across images: (B 64)^2 similarities


def distances(seen: Compared) -> Array:
    """Huber distance of the relative distances between images' mean embeddings (RKD)."""
    return losses.rkd_distance(*_means(seen))


def angles(seen: Compared) -> Array:
    """Huber distance of the angles between three images' mean embeddings (RKD)."""
    return losses.rkd_angle(*_means(seen))


def similarities(seen: Compared) -> Array:
    """Squared difference of the normalised Gram matrices of the batch (similarity-preserving)."""
    return losses.similarity_preserving(*_maps(seen))


def pixels(seen: Compared) -> Array:
    """KL divergence of the similarities of positions across images, of maps of at most 8 x 8 (CIRKD)."""
    return losses.cirkd(*(pooled(x, PIXELS_SIDE) for x in _maps(seen)))


def correlation(seen: Compared) -> Array:
    """1 - Pearson's r of each channel over the batch's positions, padding included as zeros (PKD)."""
    return losses.pkd(*_maps(seen))


def _maps(seen: Compared) -> tuple[Array, Array]:
    student, teacher = seen.student.embedding, seen.teacher.embedding
    return on_image(student, seen.valid), on_image(teacher, seen.valid)


def _means(seen: Compared) -> tuple[Array, Array]:
    size = seen.valid.sum((-2, -1))[:, None]
    student, teacher = (x.sum((-3, -2)) / (size + (size == 0)) for x in _maps(seen))
    return student, teacher
