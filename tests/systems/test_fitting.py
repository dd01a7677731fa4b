"""Whether a system fits a model, without its weights: counts by hand, reasons in words."""

import jax
import pytest

from medvfm_jax import models, systems
from medvfm_jax.adapters import NoSuchSite, sites
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.systems.fitting import _WORDS, fit, fits, why

MODEL = models.build("vit-tiny-test")
HEAD = 2 * (16 + 1)  # the layer that a model of features gets, for two classes
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "rank", "trained"),
    [
        ("lora", None, 2 * 2 * 4 * (16 + 16) + HEAD),
        ("lora", 16, 2 * 2 * 16 * (16 + 16) + HEAD),
        ("pissa", 8, 2 * 2 * 8 * (16 + 16) + HEAD),
        ("fact_tt", 2, 2 * 16 * 2 + 2 * 2 * 4 + HEAD),
        ("bitfit", 3, 16 + 2 * (48 + 16 + 64 + 16 + 2 * 16) + 16 + HEAD),  # no rank to change
    ],
)
def test_what_fits_says_what_trains(name: str, rank: int | None, trained: int) -> None:
    assert fit(name, MODEL, SHAPES, rank) == (trained, "")


def test_systems_that_see_the_model_alike_trace_it_once(monkeypatch) -> None:
    traced, names = [], ["lora", "adaptformer", "ssf", "layernorm"]
    plain = sites._traced_sites
    monkeypatch.setattr(sites, "_traced_sites", lambda *a, **kw: traced.append(a) or plain(*a, **kw))
    found = list(fits(names, MODEL, SHAPES))
    assert len(traced) == 1
    assert found == [fit(name, MODEL, SHAPES) for name in names]


def test_a_system_without_prompts_is_counted_on_the_model_without_them() -> None:
    """Two classes have two tokens and two MLPs where prompts have four of each, and a head that rates masks: 42,700."""
    model = models.build("sam-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert fit("samed", model, shapes).trained == 35_904  # as `medvfm adapt --adapter samed` says


def test_models_of_volumes_with_prompts_are_tried_too() -> None:
    model = models.build("sam-med3d-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert fit("lora", model, shapes).trained > 0


@pytest.mark.parametrize(
    ("name", "rank", "reason"),
    [
        (
            "lora",
            17,
            "a rank of 17 is larger than the layer 'image_encoder/blocks_0/attn/qkv', which is 16 wide",
        ),
        ("lora_ga", 9, "takes 18 singular directions and which has 16"),
        ("adalora", 3, "target must be above 0 and at most the rank, 3, not 4"),
        ("lora_sam", None, "the model has no mask tokens with hypernetworks."),
    ],
)
def test_what_does_not_fit_says_why(name: str, rank: int | None, reason: str) -> None:
    found = fit(name, MODEL, SHAPES, rank)
    assert found.trained is None
    assert reason in found.reason


def test_a_pattern_of_the_user_is_shown_as_it_is() -> None:
    text = "'encoder/.*' matches no module that is called among 3; it must match a whole path."
    assert why(NoSuchSite(text)) == text


@pytest.mark.slow
def test_on_sam2_lora_reaches_every_block_and_attention_over_depth_says_that_queries_are_pooled_away() -> (
    None
):
    """q and v of six blocks, of which three widen: rank 4 of 8 to 8, 8 to 16, 16 to 32, twice 32 to 32, 32 to 64."""
    model = models.build("sam2-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert fit("lora", model, shapes) == (2 * 4 * (16 + 24 + 48 + 64 + 64 + 96), "")
    found = fit("sd_trans", model, shapes)
    assert found.trained is None
    assert "image_encoder/blocks_1/attn' turns (16, 16, 8) into (8, 8, 16)" in found.reason
    assert fit("context", model, shapes) == (None, "a 6x6 grid does not fit a 4x4 map: use smaller grids.")


def test_attention_over_slices_needs_a_map_and_efficient_sam_has_tokens():
    model = models.build("efficient-tiny-test")
    found = fit("sd_trans", model, jax.eval_shape(model.init, jax.random.key(0)))
    assert found.trained is None
    assert "with qkv, proj and heads of 8 on a map" in found.reason


SAM = models.build("sam-tiny-test")


@pytest.mark.parametrize(
    ("name", "model", "told"),
    [
        ("desam", MODEL, "DeSAM needs a SAM that takes prompts, and 'vit-tiny-test' is another model."),
        ("auto_sam", MODEL, "the model has no network that predicts prompts"),
        ("h_sam", MODEL, "the model has no"),
        ("samus", models.build("lite-tiny-test"), "SAMUS needs a SAM with a ViT"),
    ],
)
def test_systems_that_add_modules_say_which_models_they_are_for(name, model, told):
    found = fit(name, model, jax.eval_shape(model.init, jax.random.key(0)))
    assert found.trained is None
    assert told in found.reason
    assert ".*" not in found.reason


def test_what_a_system_adds_is_counted():
    shapes = jax.eval_shape(SAM.init, jax.random.key(0))
    whole = fit("desam", SAM, shapes).trained
    assert whole > sum(p.size for p in jax.tree.leaves(shapes["params"]["mask_decoder"]))


@pytest.mark.parametrize("name", systems.SYSTEMS.names())
def test_every_pattern_of_a_system_has_words(name):
    """So that no model that lacks its sites is answered with a regular expression."""
    for entry in MODELS.values():
        for part in systems.SYSTEMS[name].adapter(entry.spec).values():
            assert part["at"] in _WORDS, part


def test_volumetric_networks_are_answered_in_words():
    model = models.build("unet-3d-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert fit("trans_sam", model, shapes).reason == (
        "the model has no layer that embeds patches in its image encoder."
    )
    assert fit("3dsam_adapter", model, shapes).reason == (
        "A slab is made of slices, and unet-3d-tiny-test sees volumes already; take another adapter."
    )
    assert fit("lora", model, shapes).reason == "the model has no attention with q, k and v in one layer."
