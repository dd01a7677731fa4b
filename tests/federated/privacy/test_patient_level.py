import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.patient_level import (
    PatientBatch,
    group_by_patient,
    patient_gradient,
    patient_value_and_grad,
)
from medvfm_jax.federated.privacy.sampling import (
    capacity_for,
    poisson_batch,
    poisson_participation,
)

P, S, D = 6, 4, 3
PRIVACY = Privacy(clip=0.5, noise_multiplier=0.0, expected_clients=5.0, unit="patient")
DELTA = {"w": jnp.array([0.3, -0.2, 0.1]), "b": jnp.float32(0.05)}


def loss(delta, example, key):
    """Half the squared error of a linear model: gradient (prediction - y) (x, 1)."""
    del key
    return 0.5 * (example["x"] @ delta["w"] + delta["b"] - example["y"]) ** 2


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    slices = {
        "x": rng.normal(size=(P, S, D)).astype(np.float32),
        "y": rng.normal(size=(P, S)).astype(np.float32),
    }
    counts = np.array([4, 1, 3, 0, 2, 4])  # patient 3 is padding
    return PatientBatch(slices, np.arange(S) < counts[:, None])


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(patient_gradient(loss, PRIVACY))


def by_hand(batch, clip, skip=None):
    """Sum over patients of the clipped mean gradient, in float64, as (D + 1,)."""
    w, total, norms = np.append(np.asarray(DELTA["w"]), DELTA["b"]).astype(np.float64), np.zeros(D + 1), []
    for p in range(P):
        rows = np.flatnonzero(batch.mask[p])
        if p == skip or not rows.size:
            continue
        x = np.concatenate([batch.slices["x"][p][rows], np.ones((rows.size, 1))], 1)
        g = ((x @ w - batch.slices["y"][p][rows])[:, None] * x).mean(axis=0)
        norms.append(np.linalg.norm(g))
        total += g * min(1.0, clip / norms[-1])
    return total, np.array(norms)


def flat(tree):
    return np.append(np.asarray(tree["w"]), tree["b"])


def test_patients_are_clipped_as_a_whole(batch, gradient):
    metrics, private = gradient(DELTA, batch, jax.random.key(0))
    total, norms = by_hand(batch, PRIVACY.clip)
    np.testing.assert_allclose(flat(private), total / 5.0, rtol=1e-5, atol=1e-7)
    assert metrics.patients == 5
    assert metrics.clipped == pytest.approx((norms > PRIVACY.clip).mean())
    assert 0 < metrics.clipped < 1
    assert jax.tree.structure(private) == jax.tree.structure(DELTA)


def test_removing_a_patient_with_all_slices_moves_the_sum_by_at_most_the_clip(batch, gradient):
    _, full = gradient(DELTA, batch, jax.random.key(0))
    for p in range(P):
        mask = batch.mask.copy()
        mask[p] = False
        # Even slices with enormous labels cannot move it further.
        wild = {"x": batch.slices["x"], "y": batch.slices["y"].copy()}
        wild["y"][p] = 1e20
        without = gradient(DELTA, PatientBatch(batch.slices, mask), jax.random.key(0))[1]
        with_wild = gradient(DELTA, PatientBatch(wild, batch.mask), jax.random.key(0))[1]
        for tree in (full, with_wild):
            moved = np.linalg.norm(flat(tree).astype(np.float64) - flat(without)) * 5.0
            assert moved <= PRIVACY.clip * (1 + 1e-5)
        if batch.mask[p].any():
            assert moved > PRIVACY.clip * (1 - 1e-4)


def test_a_patient_that_is_not_finite_is_left_out(batch, gradient):
    slices = {"x": batch.slices["x"].copy(), "y": batch.slices["y"]}
    slices["x"][2, 0, 1] = np.nan
    _, private = gradient(DELTA, PatientBatch(slices, batch.mask), jax.random.key(0))
    np.testing.assert_allclose(
        flat(private), by_hand(batch, PRIVACY.clip, skip=2)[0] / 5.0, rtol=1e-5, atol=1e-7
    )


def test_no_loss_is_so_large_that_a_client_would_not_count():
    """Two finite losses whose sum is not: whether the hospital counts would tell that both patients are there."""
    batch = PatientBatch(jnp.full((2, 1), 2e38), jnp.ones((2, 1), bool))
    of_loss = patient_gradient(lambda delta, x, key: x + 0.0 * delta["b"], PRIVACY)
    metrics, _ = of_loss(DELTA, batch, jax.random.key(0))
    assert float(metrics.loss) == pytest.approx(1e25)
    assert np.isfinite(1e4 * float(metrics.loss))  # summed over steps


def test_without_clipping_it_is_the_gradient_of_the_mean_patient_loss(batch):
    privacy = PRIVACY._replace(clip=1e6)
    (value, measured), private = jax.jit(patient_value_and_grad(loss, privacy))(
        DELTA, batch, jax.random.key(0)
    )
    assert (measured["patients"], measured["clipped_patients"]) == (5, 0)
    np.testing.assert_allclose(flat(private), by_hand(batch, np.inf)[0] / 5.0, rtol=1e-5, atol=1e-7)
    errors = (batch.slices["x"] @ np.asarray(DELTA["w"]) + 0.05 - batch.slices["y"]) ** 2 / 2
    means = [errors[p][batch.mask[p]].mean() for p in range(P) if batch.mask[p].any()]
    assert value == pytest.approx(np.mean(means), rel=1e-5)


def test_microbatches_change_nothing_but_memory(batch, gradient):
    key = jax.random.key(3)
    small = jax.jit(patient_gradient(loss, PRIVACY, microbatch=2))(DELTA, batch, key)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(gradient(DELTA, batch, key))):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(BadPrivacy, match="6 patients cannot be split into microbatches of 4"):
        patient_gradient(loss, PRIVACY, microbatch=4)(DELTA, batch, key)


def test_noise_has_the_stated_variance_and_is_fresh_each_step(batch):
    privacy = PRIVACY._replace(noise_multiplier=2.0)
    empty = PatientBatch(batch.slices, np.zeros((P, S), bool))
    noise = jax.jit(jax.vmap(lambda k: patient_gradient(loss, privacy)(DELTA, empty, k)[1]))
    values = noise(jax.random.split(jax.random.key(5), 2000))
    values = np.concatenate([np.asarray(values["w"]), np.asarray(values["b"])[:, None]], 1) / (
        2.0 * 0.5 / 5.0
    )
    low, high = stats.chi2.interval(1 - 1e-6, values.size)
    assert low < np.sum(values.astype(np.float64) ** 2) < high
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(D + 1), atol=0.12)


def test_the_record_must_protect_patients():
    with pytest.raises(BadPrivacy, match='unit="patient"'):
        patient_gradient(loss, PRIVACY._replace(unit="client"))


def test_slices_are_grouped_by_their_patient():
    owners = ["b", "a", "b", "c", "b", "a", "b"]
    batch, names = group_by_patient({"x": np.arange(7)}, owners, 3, np.random.default_rng(0))
    assert names == ["b", "a", "c"]
    np.testing.assert_array_equal(batch.mask.sum(axis=1), [3, 2, 1])
    for name, row, mask in zip(names, batch.slices["x"], batch.mask):
        kept = row[mask]
        assert len(set(kept)) == len(kept)
        assert {owners[i] for i in row} == {name}  # padding is the patient's own too
    with pytest.raises(BadPrivacy):
        group_by_patient({"x": np.arange(0)}, [], 3, np.random.default_rng(0))


def test_poisson_batches_draw_each_patient_independently():
    population, rate, capacity, draws = 20, 0.3, 9, 4000
    keys = jax.random.split(jax.random.key(7), draws)
    index, mask, over = (np.asarray(x) for x in jax.jit(
        jax.vmap(lambda k: poisson_batch(k, rate, population, capacity)))(keys))  # fmt: skip
    assert index.shape == mask.shape == (draws, capacity)
    assert (index[~mask] == 0).all()
    assert all(len(set(i[m])) == m.sum() for i, m in zip(index[:200], mask[:200]))
    sizes = mask.sum(axis=1)
    exact = stats.binom(population, rate)
    counts = np.bincount(sizes, minlength=capacity + 1)
    expected = np.append(exact.pmf(np.arange(capacity)), exact.sf(capacity - 1)) * draws
    assert stats.chisquare(counts[2:], expected[2:] * counts[2:].sum() / expected[2:].sum()).pvalue > 1e-3
    assert over.mean() == pytest.approx(exact.sf(capacity), abs=5 * np.sqrt(exact.sf(capacity) / draws))
    chosen = np.bincount(index[mask], minlength=population)
    assert stats.chisquare(chosen).pvalue > 1e-3
    # A batch wider than the population is allowed.
    wide = poisson_batch(jax.random.key(1), 1.0, 3, 5)
    assert sorted(np.asarray(wide[0])[np.asarray(wide[1])]) == [0, 1, 2]
    assert poisson_participation(jax.random.key(0), 0.5, 1000).mean() == pytest.approx(0.5, abs=0.08)


def test_the_capacity_is_the_least_that_is_safe():
    capacity = capacity_for(0.05, 400, 1000, 1e-8)
    drawn = stats.binom(400, 0.05)
    assert 1000 * drawn.sf(capacity) <= 1e-8 < 1000 * drawn.sf(capacity - 1)
    assert capacity_for(1.0, 400, 1000) == 400
    with pytest.raises(BadPrivacy, match="cannot size a batch"):
        capacity_for(0.0, 10, 1)


def test_padding_patients_are_not_differentiated_and_change_no_bit(batch):
    """A host callback counts the patients whose loss is computed, one at a time, with all their slices at once."""
    seen = []

    def counted(delta, example, key):
        jax.debug.callback(lambda: seen.append(1))
        return loss(delta, example, key)

    present = batch.mask.any(1)
    padded = jax.tree.map(lambda x: np.concatenate([x[present], np.zeros_like(x[:3])]), batch)
    noisy = PRIVACY._replace(noise_multiplier=1.0)
    small = jax.jit(patient_gradient(counted, noisy, microbatch=1))
    exact = small(DELTA, jax.tree.map(lambda x: x[: present.sum()], padded), jax.random.key(3))
    jax.block_until_ready(exact)
    jax.effects_barrier()
    count = len(seen)
    assert count == present.sum()
    seen.clear()
    found = small(DELTA, padded, jax.random.key(3))
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(seen) == count
    jax.tree.map(np.testing.assert_array_equal, found, exact)
