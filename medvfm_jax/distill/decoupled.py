"""Decoupled distillation: a small encoder learns the embedding of a large one; the rest stays as it is.

The student's embedding replaces the teacher's, so the teacher's frozen prompt encoder and mask decoder work
on it unchanged. Nothing but images is needed: no masks, no prompts. The teacher runs once over the images
(`write_embeddings`); training then reads its answers from a file.

Sources: MobileSAM (Zhang et al. 2023) for the recipe, EdgeSAM (Zhou et al. 2023) for leaving out padding.
"""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.losses import embedding_cosine, embedding_mse
from medvfm_jax.types import MedvfmError, Params

Encode = Callable[[Params, Array], Array]  # (params, image (S, S, 3)) -> embedding (h, w, c), as Model.encode


class EmbeddingMismatch(MedvfmError):
    """Student and teacher embeddings, or a file of embeddings and its images, do not belong together."""


class DecoupledBatch(NamedTuple):
    """image (B, S, S, 3); teacher (B, h, w, c) precomputed embeddings, or None; valid (B, h, w) in {0, 1}."""

    image: Array
    teacher: Array | None
    valid: Array


class DistillState(NamedTuple):
    """What training changes: the student's parameters, the optimizer's state, the number of steps taken."""

    params: Any
    optimizer: optax.OptState
    step: Array


def valid_positions(height: int, width: int, input_size: int, positions: int) -> NDArray[np.float32]:
    """Content of height × width pixels, top left in the input -> (positions, positions) in {0, 1}.

    A position of the embedding counts when its centre lies on the image and not on the padding.
    """
    centre = (np.arange(positions) + 0.5) * input_size / positions
    return np.outer(centre < height, centre < width).astype(np.float32)


def make_decoupled_loss(
    student_encode: Encode, teacher_encode: Callable[[Array], Array] | None = None
) -> Callable[[Params, DecoupledBatch], tuple[Array, dict[str, Array]]]:
    """-> loss(student_params, batch) -> (mean squared error of the embeddings, {"mse", "cosine"}).

    The teacher's embeddings come from `batch.teacher`; where that is None, `teacher_encode(image)`,
    un-batched and with its parameters bound, computes them. Raises `EmbeddingMismatch` when neither is
    there or the shapes differ.
    """

    def loss(params: Params, batch: DecoupledBatch) -> tuple[Array, dict[str, Array]]:
        student = jax.vmap(student_encode, in_axes=(None, 0))(params, batch.image)
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
        return mse, {"mse": mse, "cosine": jax.lax.stop_gradient(cosine)}

    return loss


def only_encoder(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer for `image_encoder/...` alone: prompt encoder, decoder and batch-norm statistics stay put.

    The statistics are part of the parameters, but as fixed numbers; scale and bias beside them can say the
    same.
    """

    def label(path: tuple[Any, ...], _: Any) -> str:
        keys = [str(getattr(entry, "key", entry)) for entry in path]
        return "train" if "image_encoder" in keys and keys[-1] not in ("mean", "var") else "keep"

    return optax.multi_transform(
        {"train": optimizer, "keep": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def make_distill_step(
    loss: Callable[[Params, DecoupledBatch], tuple[Array, dict[str, Array]]],
    optimizer: optax.GradientTransformation,
    *,
    microbatch: int | None = None,
) -> tuple[
    Callable[[Params], DistillState],
    Callable[[DistillState, DecoupledBatch], tuple[DistillState, dict[str, Array]]],
]:
    """-> (init(params) -> state, step(state, batch) -> (state, metrics)); jitted, state donated.

    `microbatch` images at a time are differentiated and their gradients averaged: the same step in less
    memory; on CPU, where batches bring no speed, 1 is a good choice. It must divide the batch.
    """

    def gradients(params: Params, batch: DecoupledBatch) -> tuple[dict[str, Array], Any]:
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return metrics, gradient

    def averaged(params: Params, batch: DecoupledBatch) -> tuple[dict[str, Array], Any]:
        if microbatch is None or microbatch >= len(batch.image):
            return gradients(params, batch)
        parts = jax.tree.map(lambda x: rearrange(x, "(n m) ... -> n m ...", m=microbatch), batch)
        first = jax.eval_shape(gradients, params, jax.tree.map(lambda x: x[0], parts))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

        def add(total: Any, part: DecoupledBatch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, part)), None

        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x * (microbatch / len(batch.image)), total)

    def init(params: Params) -> DistillState:
        return DistillState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: DistillState, batch: DecoupledBatch) -> tuple[DistillState, dict[str, Array]]:
        metrics, gradient = averaged(state.params, batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        metrics = metrics | {"gradient_norm": optax.global_norm(gradient)}
        return DistillState(optax.apply_updates(state.params, updates), moments, state.step + 1), metrics

    return init, step


def write_embeddings(
    path: str | os.PathLike[str],
    teacher_encode: Callable[[Array], Array],
    images: Iterable[NDArray],
    count: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float16]:
    """`count` images (S, S, 3) -> float16 array (count, h, w, c) in the .npy file `path`, mapped read-only.

    float16 halves the file (2 MB per image at 64 × 64 × 256); its error is a thousandth of a value, far
    below what a student reaches. Written under another name first, so that a file of that name is complete;
    an existing one is reused. `progress(done, count)` is called after each image. Raises
    `EmbeddingMismatch` when an existing file or `images` has another length.
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
