"""docs/adapter-costs.md: every system has a row, and rows are what the script finds."""

import jax
import jax.numpy as jnp
import pytest

from experiments.adapter_costs import BOX, PAGE, Cost, cost, page
from medvfm_jax import models, systems
from medvfm_jax.plan.flops import forward_flops
from medvfm_jax.systems.fitting import fit


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {line.split(" | ")[0].strip("|` "): line.strip("| ").split(" | ") for line in lines}


def test_every_system_has_a_row() -> None:
    assert list(rows()) == list(systems.SYSTEMS.names()), "run python -m experiments.adapter_costs"


def test_published_counts_stand_on_the_page() -> None:
    found = {name: row[2] for name, row in rows().items() if len(row) > 2}
    assert found["lora"] == "147,456"  # SAMed: 12 blocks, q and v, two factors of 768 x 4
    assert found["dora"] == f"{147_456 + 12 * 2 * 768:,}"
    # FacT-TT: two outer factors of 768 x 16 and 24 cores; beside the decoder
    assert found["fact_tt"] == f"{4_058_340 + 2 * 768 * 16 + 24 * 16**2:,}"
    assert found["fact_tk"] == f"{4_058_340 + 2 * 768 * 16 + 16**3 + 24 * 16:,}"


def test_rows_say_what_merges_and_why_the_others_do_not() -> None:
    found = {name: row[1] for name, row in rows().items()}
    assert {found[name] for name in ("lora", "dora", "pissa", "adalora", "fact_tt", "ssf", "bitfit")} == {
        "yes"
    }
    assert found["compacter"] == found["adaptformer"] == "no: its two layers have a nonlinearity between them"


@pytest.mark.slow
def test_a_row_is_measured_on_the_model() -> None:
    """On a tiny model: FLOPs of LoRA by hand, 4 blocks of 16 tokens and the padding token of the windows."""
    model = models.build("sam-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = cost("lora", model, params)
    assert (found.merges, found.trained, found.size, found.encoder) == ("yes", 1_024, 4_096, True)
    image = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    plain = forward_flops(lambda p, x, b: model.apply(p, x, b).logits, params, image, BOX)
    tokens = 4 * 16 + 2  # both window blocks call qkv once more, on one token
    assert found.forward - plain == tokens * 2 * (16 * 8 + 8 * 48)


def test_every_system_is_counted_but_those_that_do_not_fit() -> None:
    assert {name for name, row in rows().items() if not "".join(row[2:]).strip()} == {"vpt", "vpt_shallow"}


@pytest.mark.slow
def test_modules_that_a_system_adds_are_counted() -> None:
    model = models.build("sam-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = cost("desam", model, params)
    assert (found.merges, found.encoder) == ("yes, its modules stay", False)
    assert found.trained == fit("desam", model, params).trained
    assert found.forward > cost("decoder", model, params).forward


@pytest.mark.slow
def test_a_slab_is_counted_by_the_slice() -> None:
    """A slab of 8 slices on a tiny model: less than eight times the model alone for each."""
    model = models.build("sam-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    alone = forward_flops(lambda p, x, b: model.apply(p, x, b).logits, params, image, BOX)
    assert alone < cost("3dmedsam", model, params).forward < 8 * alone


def test_what_does_not_fit_says_why_in_its_row() -> None:
    model = models.build("sam-tiny-test")
    found = cost("vpt", model, jax.eval_shape(model.init, jax.random.key(0)))
    assert found.trained is None
    assert "not on (tokens, d)" in found.merges
    line = page([found, Cost("x", "yes", 10, 40, True, 110, 2 * 10**9)], 100).splitlines()
    assert line[-1] == "| `x` | yes | 10 | 0.00 MiB | changed | +10.00 % | 2 GFLOP |"
    assert line[-2].startswith("| `vpt` | does not fit: prompt_tokens at")
