"""The rows do what they say, as often as they are called; their work is counted; one row alone in a process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.bench import rows
from medvfm_jax.bench.alone import alone
from medvfm_jax.models import catalog
from medvfm_jax.settings.bench import ROW_NAMES

TINY = "lite-tiny-test"


@pytest.fixture(scope="module")
def tiny():
    model = catalog.build(TINY)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # Positive, because variances of batch norms are among them.
    params = jax.tree.map(lambda s: np.abs(rng.normal(0, 0.2, s.shape)).astype(np.float32), shapes)
    return rows.Subject(model, params)


@pytest.fixture(scope="module")
def encode(tiny):
    return rows.build("encode", tiny, 2)


def test_a_forward_pass_is_counted_as_its_products():
    weights = {"params": {"w": jnp.ones((5, 7))}}
    assert (
        rows._forward_flop(lambda params, x: x @ params["params"]["w"], weights, jnp.ones((3, 5)))
        == 2 * 3 * 5 * 7
    )


@pytest.mark.slow
def test_segment_is_encode_and_more(tiny, encode):
    segment = rows.build("segment", tiny, 2)
    assert (encode.images, segment.images) == (1, 1)
    assert 0 < encode.flop < segment.flop
    assert encode.call().shape == tiny.spec.embedding
    assert segment.call().logits.shape == (1, 1, tiny.spec.logits_size, tiny.spec.logits_size)


@pytest.mark.slow
def test_a_step_on_embeddings_can_be_repeated_and_leaves_out_the_encoder(tiny, monkeypatch):
    seen, ready = [], jax.block_until_ready

    def watch(result):
        state, metrics = ready(result)
        seen.append((int(state.step), bool(metrics["finite"])))  # now: the next step consumes the state

    monkeypatch.setattr(jax, "block_until_ready", watch)
    row = rows.build("decoder", tiny, 2)
    for _ in range(2):
        row.call()
    assert row.images == 2
    assert seen == [(1, True), (2, True)]
    assert row.flop > 0


@pytest.mark.slow
def test_samed_trains_through_the_encoder(tiny, encode, monkeypatch):
    """Counted, not compiled: the products of encoder and decoder, forward and backward, of two images."""
    monkeypatch.setattr(rows, "make_step", lambda *words: None)
    samed = rows.build("samed", tiny, 2)
    assert samed.images == 2
    assert samed.flop > 2 * 2 * encode.flop


def test_the_loader_gives_another_batch_every_time(tiny):
    row = rows.build("loader", tiny, 3)
    one, two = row.call(), row.call()
    assert row.images == 3
    assert row.flop is None
    size = tiny.spec.input_size
    assert one.image.shape == two.image.shape == (3, size, size, 3)
    assert one.prompts.points.shape == (3, 1, 2, 2)
    assert (one.image != two.image).any()


def test_every_row_says_what_it_measures():
    assert set(rows.MEASURES) == set(ROW_NAMES)


@pytest.mark.slow
def test_a_row_alone_in_a_process_or_why_not():
    found = alone(TINY, "loader", 2, "float32")
    assert found["peak_mib"] >= found["loaded_mib"] > 0
    assert found["first_s"] > 0
    assert "no model 'lite-tny'" in alone("lite-tny", "loader", 2, "float32")["failed"]
