"""The commands for accelerators, on this machine with tiny shapes: they run, and what they compare agrees."""

import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.device import attention_kernels, encoders, lora_step, measure
from medvfm_jax.plan.chips import CHIPS
from medvfm_jax.settings.plan import PlanConfig


@pytest.mark.parametrize("name", ["attention_kernels", "encoders", "lora_step"])
def test_a_machine_without_an_accelerator_is_told_so_in_a_sentence(name, monkeypatch):
    monkeypatch.setattr("sys.argv", [name])
    with pytest.raises(SystemExit, match="JAX sees no accelerator here"):
        runpy.run_module(f"experiments.device.{name}", run_name="__main__", alter_sys=False)


@pytest.mark.parametrize(
    "kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA A100-SXM4-80GB", "NVIDIA H200", "cpu"]
)
def test_the_step_is_planned_for_one_of_the_card_that_is_there(kind, monkeypatch, tmp_path, capsys):
    """Of TPUs the plan refused v5e:1: a slice has as many sides as dimensions."""
    name = measure.chip_name(kind)
    chip = None if name is None else CHIPS[name]
    asked = []

    def planned(config):
        asked.append(config.topology)
        return {"step_seconds": None}

    monkeypatch.setattr(lora_step, "card", lambda: ({"device": kind, "plan_calls_it": name}, chip))
    monkeypatch.setattr(lora_step, "planned", planned)
    monkeypatch.setattr(lora_step, "measured", lambda *_: {"peak_bytes": None})
    lora_step.run(lora_step.Plan(("sam-tiny-test",), out=tmp_path / "s.json"))
    family, _, sides = asked[0].partition(":")
    assert family == (name or "cpu")
    assert sides == ("" if chip is None else "x".join(["1"] * chip.dimensions))


def test_turns_rotate_and_every_call_is_made_before():
    said = []
    seconds = measure.in_turns([lambda: said.append("a"), lambda: said.append("b")], rounds=2, inner=2)
    assert said == ["a", "b", "a", "a", "b", "b", "b", "b", "a", "a"]
    assert [len(one) for one in seconds] == [2, 2]


def test_made_up_arrays_have_the_shapes():
    wanted = {
        "x": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16),
        "n": jax.ShapeDtypeStruct((4,), jnp.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }
    found = measure.made_up(wanted)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    assert 0 < float(jnp.abs(found["x"].astype(jnp.float32)).max()) < 1


def test_kernels_agree_with_the_plain_form_and_so_does_jax():
    found = attention_kernels.errors((2, 5, 20), "float32", True)
    assert set(found) == {"kernels", "plain", "dot_product_attention"}
    for errors in found.values():
        assert len(errors) == 6  # values, and gradients of q, k, v and both biases
        assert max(errors) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sam-tiny-test"])
def test_encoders_are_timed(tmp_path, model, capsys):
    plan = encoders.Plan((model,), (1, 2), "float32", rounds=2, out=tmp_path / "e.json")
    found = encoders.run(plan)["encoders"]
    for batch in (1, 2):
        row = found[f"{model}, {batch}"]
        assert row["jax"]["images_per_second"] == batch / row["jax"]["median"]
        assert row["jax"]["share_of_peak"] is None
        assert row["flop_per_image"] > 0
    assert json.loads((tmp_path / "e.json").read_text())["card"]["platform"] == "cpu"


@pytest.mark.slow
def test_the_planned_step_is_the_measured_one(tmp_path, capsys):
    plan = lora_step.Plan(("sam-tiny-test",), batch=2, dtype="float32", rounds=2, out=tmp_path / "s.json")
    row = lora_step.run(plan)["steps"]["sam-tiny-test"]
    assert row["predicted"]["bytes"] > 0
    assert np.isfinite(row["seconds"]["median"])
    assert row["images_per_second"] == 2 / row["seconds"]["median"]


@pytest.mark.slow
@pytest.mark.parametrize(("held", "told"), [([100, 150], 150), ([200, 200], None)])
def test_memory_of_an_earlier_model_is_not_that_of_a_smaller_one(held, told, monkeypatch):
    answers = iter(held)
    monkeypatch.setattr(lora_step, "peak_bytes", lambda: next(answers))
    config = PlanConfig("sam-tiny-test", global_batch=2, accumulate=1)
    assert lora_step.measured(config, 1, None)["peak_bytes"] == told
