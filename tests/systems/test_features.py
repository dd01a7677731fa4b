"""Systems on models of features: the new layer is always there and always trained, once."""

import jax
import pytest

from medvfm_jax import models, systems
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.systems.fitting import fit

SPEC = MODELS["vit-tiny-test"].spec
MODEL = models.build("vit-tiny-test")
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0))
HEAD = 2 * (16 + 1)  # two classes, 16 channels


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("linear", HEAD),
        ("decoder", HEAD),
        ("lora", 2 * 2 * 4 * (16 + 16) + HEAD),
        ("vpt", 2 * 10 * 16 + HEAD),
        ("vpt_shallow", 50 * 16 + HEAD),
        ("bitfit", 16 + 2 * (48 + 16 + 64 + 16 + 2 * 16) + 16 + HEAD),
        ("full", sum(leaf.size for leaf in jax.tree.leaves(SHAPES)) + HEAD),
    ],
)
def test_the_layer_is_counted_once(name, trained):
    assert fit(name, MODEL, SHAPES) == (trained, "")


def test_a_slab_has_the_layer_in_each_slice():
    change = systems.for_features(systems.SYSTEMS["sd_trans"]).transform(SPEC, "none", 3)
    assert (change["kind"], change["of"]) == ("slab", {"kind": "linear_head", "classes": 3})


def test_what_a_system_does_on_other_models_is_as_before():
    plain = systems.SYSTEMS["lora"]
    assert "new_layer" not in plain.adapter(SPEC)
    assert systems.for_features(plain).adapter(SPEC)["new_layer"]["at"] == "mask_decoder/head/(kernel|bias)"
    assert systems.for_features(plain).prompts == "none"
