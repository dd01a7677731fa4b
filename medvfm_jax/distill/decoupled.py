"""Decoupled distillation: a small encoder learns the embedding of a large one; the rest stays frozen.

The student's embedding replaces the teacher's, so the teacher's frozen prompt encoder and mask decoder work
on it unchanged. Nothing but images is needed: no masks, no prompts. The teacher runs once over the images
(`write_embeddings`); training then reads its answers from a file.

Sources: MobileSAM (Zhang et al. 2023) for the recipe, EdgeSAM (Zhou et al. 2023) for leaving out padding.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.losses import embedding_cosine, embedding_mse
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Delta, MedvfmError, Params


class EmbeddingMismatch(MedvfmError):
    """Student and teacher embeddings, or a file of embeddings and its images, do not belong together."""


class DecoupledBatch(NamedTuple):
    """Images and what their embeddings should be.

    Attributes:
        image: (B, S, S, 3), preprocessed.
        teacher: (B, h, w, c) precomputed embeddings, or None.
        valid: (B, h, w) in {0, 1}, 0 on padding, see ``valid_positions``.
    """

    image: Array
    teacher: Array | None
    valid: Array


def valid_positions(height: int, width: int, input_size: int, positions: int) -> NDArray[np.float32]:
    """Positions of an embedding whose centre lies on the image and not on the padding.

    Args:
        height: of the content in the model's input, pixels; the content is at the top left.
        width: likewise.
        input_size: side of the model's input, pixels.
        positions: side of the embedding.

    Returns:
        (positions, positions) in {0, 1}.
    """
    centre = (np.arange(positions) + 0.5) * input_size / positions
    return np.outer(centre < height, centre < width).astype(np.float32)


def make_decoupled_loss(
    student_encode: Callable[..., Array], teacher_encode: Callable[[Array], Array] | None = None
) -> LossFn:
    """Mean squared error between the embeddings of student and teacher, for ``train.make_step``.

    What trains is the student's delta, such as ``tune(r"image_encoder/.*")`` for the whole encoder.

    Args:
        student_encode: ``(params, delta, image)``, un-batched, as ``AdaptedModel.encode``.
        teacher_encode: ``(image)``, un-batched and with its parameters bound; used where ``batch.teacher`` is None.

    Returns:
        ``loss(params, delta, batch, key) -> (scalar, {"mse", "cosine", "weight"})``.

    Raises:
        EmbeddingMismatch: raised by the loss when neither embeddings nor a teacher are there, or the shapes differ.

    References:
        MobileSAM, section 3.2: https://arxiv.org/abs/2306.14289
        EdgeSAM: https://arxiv.org/abs/2312.06660
    """

    def loss(
        params: Params, delta: Delta, batch: DecoupledBatch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        del key  # nothing is drawn
        student = jax.vmap(student_encode, in_axes=(None, None, 0))(params, delta, batch.image)
        teacher = batch.teacher
        if teacher is None:
            if teacher_encode is None:
                raise EmbeddingMismatch(
                    "the batch holds no teacher embeddings and the loss was made without a teacher; "
                    "give it one of the two"
                )
            teacher = jax.vmap(teacher_encode)(batch.image)
        if student.shape != teacher.shape:
            raise EmbeddingMismatch(
                f"the student's embedding has shape {student.shape[1:]} and the teacher's has shape "
                f"{teacher.shape[1:]}; give the student a neck with the teacher's resolution and channels"
            )
        mse = jax.vmap(embedding_mse)(student, teacher, batch.valid).mean()
        cosine = jax.vmap(embedding_cosine)(student, teacher, batch.valid).mean()
        weight = jnp.float32(len(batch.image))
        return mse, {"mse": mse, "cosine": jax.lax.stop_gradient(cosine), "weight": weight}

    return loss


def write_embeddings(
    path: str | os.PathLike[str],
    teacher_encode: Callable[[Array], Array],
    images: Iterable[NDArray],
    count: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float16]:
    """Write a teacher's embeddings into an .npy file; an existing file is reused.

    float16 halves the file (2 MB per image at 64 × 64 × 256); its error is a thousandth of a value, far
    below what a student reaches. Written under another name first, so that a file of that name is complete.

    Args:
        path: the .npy file.
        teacher_encode: image -> embedding (h, w, c), un-batched.
        images: (S, S, 3) each, preprocessed.
        count: their number.
        progress: called with (done, count) after each image.

    Returns:
        (count, h, w, c) float16, memory-mapped read-only.

    Raises:
        EmbeddingMismatch: an existing file or ``images`` has another length.
    """
    path = Path(path)
    if not path.exists():
        encode = jax.jit(teacher_encode)
        partial = path.with_suffix(".partial.npy")
        partial.unlink(missing_ok=True)
        table, done = None, 0
        for image in images:
            embedding = np.asarray(encode(jnp.asarray(image)), np.float32)
            if table is None:
                table = np.lib.format.open_memmap(partial, "w+", np.float16, (count, *embedding.shape))
            if done < count:
                table[done] = np.clip(embedding, -65504, 65504)
            done += 1
            if progress is not None:
                progress(done, count)
        if table is None or done != count:
            raise EmbeddingMismatch(f"{done} images were given for {path}, {count} were announced")
        table.flush()
        del table
        os.replace(partial, path)
    embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(embeddings) != count:
        raise EmbeddingMismatch(
            f"{path} holds {len(embeddings)} embeddings, {count} images were given; delete it "
            "to compute them again"
        )
    return embeddings
