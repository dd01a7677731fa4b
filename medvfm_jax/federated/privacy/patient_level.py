"""Patient-level differential privacy inside one hospital: DP-SGD whose unit is the patient, not the slice.

All slices of a patient make one gradient, which is clipped as one. Clipping slice by slice would protect slices,
and a patient with forty of them could still move the model forty times as far.

For a federation of a few hospitals this is the useful unit: client-level privacy of N = 10 hospitals over 100
rounds at ε = 8 needs noise of 0.6 clips per coordinate of the mean. Each hospital accounts for its own patients;
the worst ε over hospitals holds for all, since a patient belongs to one hospital.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, Observed, Whole, unchanged
from medvfm_jax.federated.core.records import Privacy, Tree
from medvfm_jax.federated.privacy.client_level import noisy_mean
from medvfm_jax.federated.privacy.clipping import clip_by_norm, global_norm
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.mesh_axes import varies, vary_like

# Of one patient, in size. Sums over patients and steps then stay finite whatever the data: whether a client counts in a
# round depends on its loss being finite, and must not depend on anything exact.
_LARGEST_LOSS = 1e25


class PatientBatch(NamedTuple):
    """P patients with up to S slices each.

    Attributes:
        slices: leaves (P, S, ...).
        mask: (P, S) bool, False is padding.
    """

    slices: Tree
    mask: Array


class PatientMetrics(NamedTuple):
    """Of one step, each () float32. Exact, so not private: for the hospital's own eyes."""

    loss: Array  # mean over patients of their mean slice loss, at most 1e25 in size, 0 where it is not finite
    clipped: Array  # fraction of patients whose gradient was longer than the clip
    patients: Array


def patient_gradient(
    loss: Callable[[Tree, Tree, Array], Array], privacy: Privacy, microbatch: int | None = None
) -> Callable[..., tuple[PatientMetrics, Tree]]:
    """Gradient of DP-SGD with patients as records: (Σ_patients clip(∇ patient loss, C) + N(0, (z C)²)) / m.

    A patient without slices adds nothing, so a batch drawn by `sampling.poisson_batch` is padded with such patients.
    Padding slices must hold finite numbers.

    Args:
        loss: (delta, slice, key) -> () for one slice; a patient's loss is the mean over its slices.
        privacy: clip C, noise multiplier z, and m = `expected_clients`, the expected number of patients in a batch, a
            public constant; its unit must be "patient".
        microbatch: patients differentiated at a time, so that memory is microbatch x delta; None: all.

    Returns:
        `gradient(delta, batch, key, whole)` -> (metrics, private gradient like delta), pure and jittable; `whole`
        says what of `delta` the loss is of, as in `local_training.Gradient`.

    Raises:
        BadPrivacy: another unit, an adaptive clip, or a batch that cannot be cut into microbatches.

    References:
        https://arxiv.org/abs/1607.00133, algorithm 1, with the patient as the record
    """
    if privacy.unit != "patient":
        raise BadPrivacy(
            f'the privacy record protects a {privacy.unit}; patient_gradient needs Privacy(..., unit="patient")'
        )
    if privacy.adapt is not None:
        raise BadPrivacy("patient_gradient clips to a fixed bound; leave Privacy.adapt out")

    def patient_loss(delta: Tree, slices: Tree, mask: Array, key: Array) -> Array:
        keys = jax.random.split(key, mask.shape[0])
        values = jax.vmap(loss, in_axes=(None, 0, 0))(delta, slices, keys)
        return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)

    def one_patient(
        whole: Whole, delta: Tree, slices: Tree, mask: Array, key: Array
    ) -> tuple[Tree, PatientMetrics]:
        value, gradient = jax.value_and_grad(lambda part: patient_loss(whole(part), slices, mask, key))(delta)
        present = mask.any()
        long = present & ~(global_norm(gradient) <= privacy.clip)  # a NaN counts as clipped: it is dropped
        gradient = jax.tree.map(lambda g: jnp.where(present, g, 0), gradient)
        # A loss that is not finite must not stop the client: one patient would then decide about a whole update.
        told = jnp.where(present & jnp.isfinite(value), jnp.clip(value, -_LARGEST_LOSS, _LARGEST_LOSS), 0)
        counts = (told, long, present)
        return clip_by_norm(gradient, privacy.clip), PatientMetrics(*(jnp.float32(x) for x in counts))

    def gradient(
        delta: Tree, batch: PatientBatch, key: Array, whole: Whole = unchanged
    ) -> tuple[PatientMetrics, Tree]:
        patients = batch.mask.shape[0]
        width = patients if microbatch is None else microbatch
        if patients % width:
            raise BadPrivacy(
                f"{patients} patients cannot be split into microbatches of {width}; pad the batch with patients "
                "whose mask is all False"
            )
        patient_key, noise_key = jax.random.split(key)
        # Keys by position, so that the size of the microbatch changes nothing but memory.
        keys = jax.vmap(lambda i: jax.random.fold_in(patient_key, i))(jnp.arange(patients))
        chunks = jax.tree.map(lambda x: x.reshape(-1, width, *x.shape[1:]), (batch.slices, batch.mask, keys))

        def add_chunk(total: tuple, chunk: tuple) -> tuple[tuple, None]:
            def add_patients(total: tuple) -> tuple:
                terms = jax.vmap(partial(one_patient, whole), in_axes=(None, 0, 0, 0))(delta, *chunk)
                return jax.tree.map(lambda t, x: t + x.sum(axis=0, dtype=t.dtype), total, terms)

            if varies(batch.mask):
                # Clients over devices run side by side, where a condition would compute both of its sides.
                return add_patients(total), None
            # A batch is padded to one of few sizes; what is only padding adds nothing and is not differentiated.
            return jax.lax.cond(chunk[1].any(), add_patients, lambda total: total, total), None

        zeros = (jax.tree.map(jnp.zeros_like, delta), PatientMetrics(*[jnp.float32(0)] * 3))
        (summed, metrics), _ = jax.lax.scan(add_chunk, vary_like(zeros, batch.mask), chunks)
        count = jnp.maximum(metrics.patients, 1)
        metrics = metrics._replace(loss=metrics.loss / count, clipped=metrics.clipped / count)
        return metrics, noisy_mean(summed, privacy.clip, privacy, noise_key)

    return gradient


def patient_value_and_grad(
    loss: Callable[[Tree, Tree, Array], Array], privacy: Privacy, microbatch: int | None = None
) -> Gradient:
    """`patient_gradient` as the gradient of an algorithm.

    Measured beside the loss: "patients" of a step and "clipped_patients" among them, numbers whose means over steps and
    clients give the share that was clipped. Like the loss they are exact, so not private.

    Args:
        loss: (delta, slice, key) -> () for one slice; a patient's loss is the mean over its slices.
        privacy: clip C, noise multiplier z, and m = `expected_clients`, the expected number of patients in a batch, a
            public constant; its unit must be "patient".
        microbatch: patients differentiated at a time, so that memory is microbatch x delta; None: all.

    Returns:
        The gradient, for the factory of an algorithm.

    Raises:
        BadPrivacy: as `patient_gradient`.
    """
    gradient = patient_gradient(loss, privacy, microbatch)

    def value_and_grad(
        delta: Tree, batch: PatientBatch, key: Array, whole: Whole = unchanged
    ) -> tuple[Observed, Tree]:
        metrics, private = gradient(delta, batch, key, whole)
        counts = {"patients": metrics.patients, "clipped_patients": metrics.clipped * metrics.patients}
        return Observed(metrics.loss, counts), private

    return value_and_grad


def group_by_patient(
    slices: Tree, patients: Sequence, slices_per_patient: int, rng: np.random.Generator
) -> tuple[PatientBatch, list]:
    """Slices grouped by patient.

    A patient with more than S slices keeps a random S of them: the choice depends on no other patient, so the guarantee
    stays. Padding repeats a slice of the same patient, which is finite by construction. On the host, before training.

    Args:
        slices: leaves (n, ...).
        patients: to which patient each slice belongs, (n,).
        slices_per_patient: S, slices kept of a patient at most.
        rng: of that choice.

    Returns:
        The batch of all P patients, and their P names in order.

    Raises:
        BadPrivacy: lengths differ, or S is below 1.
    """
    rows: dict = {}
    for row, patient in enumerate(patients):
        rows.setdefault(patient, []).append(row)
    if slices_per_patient < 1 or not rows:
        raise BadPrivacy("grouping slices by patient needs at least one slice and room for one per patient")
    index = np.zeros((len(rows), slices_per_patient), np.int64)
    mask = np.zeros(index.shape, bool)
    for i, owned in enumerate(rows.values()):
        kept = rng.permutation(owned)[:slices_per_patient]
        index[i], mask[i, : len(kept)] = kept[0], True
        index[i, : len(kept)] = kept
    return PatientBatch(jax.tree.map(lambda x: np.asarray(x)[index], slices), mask), list(rows)
