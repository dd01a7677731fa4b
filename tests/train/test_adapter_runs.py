"""Runs whose adapter trains in a way of its own: dropout, rates per array, constants, ranks that are given out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.adapters import WrongSite
from medvfm_jax.adapters.parameter_paths import node_at
from medvfm_jax.train import make_loss, make_optimizer, resolve, train
from medvfm_jax.train.adaptation import adapt
from medvfm_jax.train.checkpoint import Checkpoint
from medvfm_jax.train.stored_delta import load_adapted
from tests.train.small_runs import build_models_once, small

SITE = "mask_decoder/transformer/layers_0/self_attn/q_proj"
# Two layers of the decoder, 32 to 32: the encoder's gradient would take longer to compile than all else here.
FEW = {"batch_size": 1, "validate_every": 0, "steps": 3}


def in_decoder(part, *options):
    """Options that put a part on two layers of the decoder."""
    at = SITE.replace("q_proj", "(q|v)_proj")
    return (f"{part}.at={at}", f"{part}.slices=none", *(f"{part}.{option}" for option in options))


@pytest.fixture(autouse=True)
def models(monkeypatch):
    build_models_once(monkeypatch)


@pytest.mark.slow
def test_dropout_is_of_the_training_loss_alone_and_of_every_step(cells, tmp_path):
    run = resolve(
        small(cells, tmp_path / "run", adapter="lora", set=in_decoder("lora", "dropout=0.5"), **FEW)
    )
    assembled, batch = run.assembled, next(run.data.loader("none"))
    delta = jax.tree.map(lambda leaf: leaf + 0.1, assembled.delta)
    params = assembled.base.params
    noisy = jax.jit(make_loss(assembled.adapted, assembled.objective, training=True))
    still = jax.jit(make_loss(assembled.adapted, assembled.objective))
    noise = [float(noisy(params, delta, batch, jax.random.key(i))[0]) for i in (0, 1, 1)]
    calm = [float(still(params, delta, batch, jax.random.key(i))[0]) for i in (0, 1)]
    assert noise[0] != noise[1] == noise[2]
    assert calm[0] == calm[1] != noise[0]


def test_rates_scale_updates_with_their_decay_and_constants_stay():
    """AdamW's first update is -rate (sign of the gradient + decay w), here times 16 for b and 0 for constants."""
    rates = {"a": 1.0, "b": 16.0, "fixed_a": 0.0}
    delta = {"low": {"site": {name: jnp.full(2, 2.0) for name in rates}}}
    optimizer = make_optimizer(optax.constant_schedule(0.1), 0.5, None, lambda keys: rates[keys[-1]])
    gradient = jax.tree.map(lambda x: 3.0 * jnp.ones_like(x), delta)
    updates = optimizer.update(gradient, optimizer.init(delta), delta)[0]["low"]["site"]
    for name, rate in rates.items():
        np.testing.assert_allclose(updates[name], -0.1 * (1 + 0.5 * 2.0) * rate, rtol=1e-5)


@pytest.mark.slow
def test_lora_ga_takes_its_start_from_the_first_batch_and_resumes_exactly(cells, tmp_path):
    run = resolve(small(cells, tmp_path / "run", adapter="lora_ga", set=in_decoder("lora", "rank=2"), **FEW))
    ends = []
    whole = train(run, [lambda end: ends.append(jax.tree.map(np.array, (end.state.delta, end.loader_state)))])
    site = whole.delta["lora"][SITE]
    norm = 32**0.25 / 16.0**0.5  # c of every direction: the features out, and the paper's gamma
    np.testing.assert_allclose(np.linalg.norm(site["fixed_a"], axis=0), norm, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(site["fixed_b"], axis=1), norm, rtol=1e-4)
    assert all(np.abs(site[name]).max() > 0 for name in ("a", "b"))
    middle, position = ends[1]
    np.testing.assert_array_equal(middle["lora"][SITE]["fixed_b"], site["fixed_b"])
    # Another first batch would give another start: what is resumed keeps the one it has.
    state = whole.state._replace(delta=middle, step=jnp.array(2))
    rest = train(run, start=Checkpoint(state, position, whole.stopping, {}, "")).delta
    np.testing.assert_array_equal(rest["lora"][SITE]["fixed_a"], site["fixed_a"])


@pytest.mark.slow
def test_eva_starts_at_the_inputs_of_the_first_batches_and_trains_on_the_first(cells, tmp_path):
    run = resolve(
        small(
            cells,
            tmp_path / "run",
            adapter="eva",
            set=in_decoder("lora", "rank=2", "batches=2"),
            weight_decay=0.0,
            **FEW | {"steps": 1},
        )
    )
    ends = []
    trained = train(run, [lambda end: ends.append(end.loader_state)])
    plain = run.data.loader("none")
    next(plain)
    assert ends[0] == plain.get_state()  # the batches that were looked at come again
    site = trained.delta["lora"][SITE]
    # b is 0 in the first step, so that a has no gradient and is where it started.
    np.testing.assert_allclose(np.asarray(site["a"]).T @ site["a"], np.eye(2), atol=1e-5)
    assert (np.asarray(site["a"]).sum(0) >= 0).all()
    assert np.abs(site["b"]).max() > 0
    assert np.abs(site["a"] - run.assembled.delta["lora"][SITE]["a"]).max() > 1e-2


@pytest.mark.slow
def test_pissa_runs_and_its_delta_says_the_same_model_again(cells, tmp_path):
    result = adapt(small(cells, tmp_path / "run", adapter="pissa", set=in_decoder("pissa", "rank=2"), **FEW))
    loaded = load_adapted(result.delta, model=None, dtype="float32")
    site = loaded.delta["pissa"][SITE]
    assert result.trained == 2 * 2 * (32 + 32)
    assert np.abs(site["a"]).max() > 0
    kernel = node_at(loaded.base.params["params"], SITE)["kernel"]
    values = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(site["fixed_a"] @ site["fixed_b"], 2), values[0], rtol=1e-4)


@pytest.mark.slow
def test_adalora_ends_with_the_ranks_that_were_asked_for(cells, tmp_path):
    options = in_decoder("adalora", "rank=3", "target=1", "every=1", "begin=0", "end=0.6")
    run = resolve(small(cells, tmp_path / "run", adapter="adalora", set=options, **(FEW | {"steps": 6})))
    trained = train(run).delta["adalora"]
    assert sum(int((site["s"] != 0).sum()) for site in trained.values()) == 2 * 1


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        (
            "lora",
            ("lora.rank=17",),
            "System 'lora' does not fit model 'sam-tiny-test': a rank of 17 is larger than",
        ),
        ("vpt", (), "System 'vpt' does not fit model 'sam-tiny-test': prompt_tokens at"),
        ("compacter", ("compacter.n=3",), "16 features are no multiple of n=3"),
        ("lora_ga", ("lora.rank=9",), "a rank of 9 is too large for the kernel"),
    ],
)
def test_what_does_not_fit_is_one_sentence(cells, tmp_path, adapter, options, message):
    with pytest.raises(WrongSite, match=message):
        resolve(small(cells, tmp_path / "run", adapter=adapter, set=options))
    assert not (tmp_path / "run").exists()
