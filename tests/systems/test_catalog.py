"""What single systems train on both layouts, overrides of their options, and their stored configuration."""

import json

import chex
import jax
import jax.numpy as jnp
import pytest

from medvfm_jax import systems
from medvfm_jax.adapters import (
    BadAdapterConfig,
    NoSuchSite,
    WrongSite,
    adapt_model,
    at,
    chain,
    count,
    from_config,
    to_config,
    touches_encoder,
    tune,
)
from medvfm_jax.models.transforms import seeded
from medvfm_jax.models.vit.modules import build_vit
from medvfm_jax.types import ModelSpec
from tests.adapters.toy_sam import BOX, DIM, IMAGE, KEY, toy_sam
from tests.adapters.toy_vit import perturbed

LAYOUTS = ("fused", "head_major")
SPEC = ModelSpec("any", 16, (4, 4, DIM), 4)


IN_ATTENTION = ("samed_s", "lora_sam", "med_sa_whole")  # have sites in the mask decoder's transformer


def deltas_of(name: str, layout: str, **overrides: object) -> dict:
    model, params = toy_sam(layout, attention=name in IN_ATTENTION)
    adapted = adapt_model(systems.adapter(name, model, **overrides), model)
    return jax.eval_shape(adapted.init, KEY, params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samed_trains_q_and_v_of_the_encoder_decoder_and_prompt_encoder(layout: str) -> None:
    delta = deltas_of("samed", layout)
    block = "blocks_" if layout == "fused" else "layers_"
    assert len(delta["lora"]) == 2
    assert all(path.startswith(f"image_encoder/{block}") for path in delta["lora"])
    site = delta["lora"][min(delta["lora"])]
    assert {name: a.shape for name, a in site.items()} == {
        "a_q": (DIM, 4),
        "b_q": (4, DIM),
        "a_v": (DIM, 4),
        "b_v": (4, DIM),
    }
    roots = {path.split("/")[0] for path in delta["decoder"]}
    assert roots == {"mask_decoder", "prompt_encoder"}
    assert "positional_encoding_gaussian_matrix" not in delta["decoder"]["prompt_encoder"]


def test_lora_of_sam_vit_b_has_the_published_size() -> None:
    """12 blocks, q and v, rank 4, width 768: 147,456 parameters (SAMed)."""
    options = systems.adapter_config("lora", SPEC)["parts"]["lora"]
    assert (options["rank"], options["alpha"], options["slices"]) == (4, None, "qv")
    assert 12 * len(options["slices"]) * 2 * options["rank"] * 768 == 147_456


@pytest.mark.parametrize("layout", LAYOUTS)
def test_med_sa_sites_and_weights(layout: str) -> None:
    delta = deltas_of("med_sa", layout)
    assert {path.rpartition("/")[2] for path in delta["space"]} == {"attn"}
    assert {path.rpartition("/")[2] for path in delta["mlp"]} == {"mlp"}
    assert {path.split("/")[0] for path in delta["decoder"]} == {"mask_decoder"}
    chex.assert_shape(jax.tree.leaves([s["down"] for s in delta["space"].values()]), (DIM, DIM // 4))
    model, _ = toy_sam(layout)
    parts = systems.adapter_config("med_sa", model)["parts"]
    assert (parts["space"].get("scale", 1.0), parts["mlp"]["scale"]) == (1.0, 0.5)
    assert parts["mlp"].get("normalise", False) == (layout == "head_major")


@pytest.mark.slow
def test_what_each_system_touches() -> None:
    encoder = {name: touches_encoder(deltas_of(name, "fused", **small(name))) for name in sam_systems()}
    assert {name for name, touched in encoder.items() if not touched} == {"decoder", "linear", "instances"}
    assert set(deltas_of("linear", "fused")["head"]) == {
        f"mask_decoder/output_hypernetworks_mlps_{m}/layers_2" for m in range(4)
    }
    _, params = toy_sam()
    full = count(deltas_of("full", "fused"), params)
    assert full.trained == full.total == sum(p.size for p in jax.tree.leaves(params)) - 2 * DIM - 2 * DIM // 2
    names = {path.rpartition("/")[2] for path in deltas_of("ssf", "fused")["ssf"]}
    assert names == {"qkv", "proj", "fc1", "fc2", "norm1", "norm2"}


def sam_systems() -> list[str]:
    """Without those for plain ViTs, and the one on the map that a real decoder enlarges."""
    return [
        name
        for name, system in systems.SYSTEMS.items()
        if not name.startswith("vpt") and name != "dodnet" and not adds_modules(system)
    ]


def adds_modules(system: systems.System) -> bool:
    """Whether the system adds modules to a model, which the toy does not have."""
    change = system.transform(SPEC, system.prompts, 2)
    return seeded(change, 0) != change


def small(name: str) -> dict:
    """Options that fit a toy of two blocks on a map of few positions."""
    return {"context.block": "aspp", "context.width": 2} if name in ("context", "lora_context") else {}


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=[pytest.mark.slow] * (n == "fused")) for n in LAYOUTS]
)
def test_systems_start_as_the_model_and_their_config_rebuilds_them(layout: str) -> None:
    model, params = toy_sam(layout)
    names = ["samed", "med_sa", "ssf", "context"] if layout == "fused" else ["samed", "med_sa"]
    adapters = {name: systems.adapter(name, model, **small(name)) for name in names}
    for name, adapter in adapters.items():
        config = systems.adapter_config(name, model, small(name))
        adapters[name] = from_config(json.loads(json.dumps(config)))
        assert to_config(adapters[name]) == to_config(adapter)

    @jax.jit
    def run(key: jax.Array) -> dict:
        outs = {}
        for name, adapter in adapters.items():
            zero = adapter.init(key, model.apply, params, IMAGE, BOX)
            moved = perturbed(zero)
            outs[name] = (
                adapter.wrap(model.apply)(params, zero, IMAGE, BOX).logits,
                adapter.wrap(model.apply)(params, moved, IMAGE, BOX).logits,
            )
        return outs

    base = model.apply(params, IMAGE, BOX).logits
    for at_start, moved in run(KEY).values():
        chex.assert_trees_all_close(at_start, base, atol=1e-5)
        assert jnp.abs(moved - base).max() > 1e-3


def test_systems_of_a_plain_vit_leave_out_the_decoder() -> None:
    model = build_vit("vit-tiny-test")
    params = jax.eval_shape(model.init, KEY)
    own = {"samed": {"lora"}, "vpt": {"prompts"}, "vpt_shallow": {"prompts"}, "med_sa": {"space", "mlp"}}
    for name, parts in own.items():
        delta = adapt_model(systems.adapter(name, model), model).init(KEY, params)
        assert set(delta) == parts
        assert touches_encoder(delta)
    scanned = build_vit("vit-tiny-test", scan_blocks=True)
    params = jax.eval_shape(scanned.init, KEY)
    delta = adapt_model(systems.adapter("vpt", scanned, **{"prompts.n": 3}), scanned).init(KEY, params)
    chex.assert_shape(delta["prompts"]["image_encoder/blocks/block_0"]["tokens"], (2, 3, 16))


def test_systems_that_do_not_fit_say_so() -> None:
    model, params = toy_sam()
    for name in ("vpt", "vpt_shallow"):
        with pytest.raises(WrongSite, match=r"not on \(tokens, d\)"):
            adapt_model(systems.adapter(name, model), model).init(KEY, params)
    vit = build_vit("vit-tiny-test")
    with pytest.raises(NoSuchSite, match="matches no parameter"):
        adapt_model(systems.adapter("linear", vit), vit).init(KEY, jax.eval_shape(vit.init, KEY))


def test_overrides_have_types() -> None:
    texts = ["lora.rank=8", "lora.alpha=16", "lora.slices=none", "lora.rank_stabilised=yes", "decoder.at=a=b"]
    parts = systems.adapter_config("samed", SPEC, systems.parse_assignments(texts))["parts"]
    lora = parts["lora"]
    assert (lora["rank"], lora["alpha"], lora["slices"], lora["rank_stabilised"]) == (8, 16.0, None, True)
    assert isinstance(lora["alpha"], float)
    assert parts["decoder"]["at"] == "a=b"
    chex.assert_shape(deltas_of("lora", "fused", **{"lora.rank": "3"})["lora"][QKV]["a_q"], (DIM, 3))


QKV = "image_encoder/blocks_0/attn/qkv"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("sammed", {}, "There is no system 'sammed', the nearest is 'samed'"),
        ("samed", {"lora.rnak": 8}, "no option 'lora.rnak', the nearest is 'lora.rank'"),
        ("samed", {"rank": 8}, "the nearest is 'lora.rank'"),
        ("decoder", {"zzz": 8}, "known are decoder.at"),
        ("lora", {"lora.rank": "four"}, "lora.rank must be a whole number, not 'four'"),
        ("lora", {"lora.rank": 2.5}, "must be a whole number"),
        ("lora", {"lora.alpha": "x"}, "must be none or a finite number"),
        ("lora", {"lora.layout": "mixed"}, "must be none or 'fused' or 'head_major'"),
        ("lora", {"lora.rank_stabilised": "maybe"}, "must be true or false"),
        ("lora", {"lora.rank": 0}, "rank must be at least 1"),
    ],
)
def test_wrong_overrides_name_the_nearest(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(BadAdapterConfig, match=message):
        systems.adapter(name, SPEC, **overrides)


def test_text_that_is_no_assignment_is_refused() -> None:
    for text in ("lora.rank", "=8"):
        with pytest.raises(BadAdapterConfig, match=r"write part\.option=value"):
            systems.parse_assignments([text])


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(BadAdapterConfig, match=r"lora\.rank is set to 8 and to 4; give it once"):
        systems.parse_assignments(["lora.rank=8", "lora.alpha=2", " lora.rank = 4"])


def test_options_of_other_parts_of_a_run_are_left_to_them_and_named_as_near() -> None:
    elsewhere = ("algorithm.mu", "codec.fraction")
    config = systems.configure(
        "lora", systems.SYSTEMS["lora"], SPEC, {"lora.rank": "8", "algorithm.mu": "1"}, elsewhere
    )
    assert config["parts"].keys() == {"lora"}
    assert config["parts"]["lora"]["rank"] == 8
    with pytest.raises(BadAdapterConfig, match=r"no option 'algorithm\.nu', the nearest is 'algorithm\.mu'"):
        systems.configure("lora", systems.SYSTEMS["lora"], SPEC, {"algorithm.nu": "1"}, elsewhere)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "lroa"}, "There is no adapter kind 'lroa', the nearest is 'lora'"),
        ({"kind": "lora", "rnk": 4}, "lora has no option 'rnk', the nearest is 'rank'"),
        ({"kind": "lora", "rank": 4}, "lora needs alpha, at"),
        ({"kind": "chain"}, "a chain needs parts"),
        ({}, "no adapter kind"),
    ],
)
def test_bad_stored_configurations(config: dict, message: str) -> None:
    with pytest.raises(BadAdapterConfig, match=message):
        from_config(config)


def test_custom_adapters_have_no_configuration() -> None:
    custom = at("x", "after", lambda k, s: {}, lambda d, y: y)
    for adapter in (custom, chain(tuned=tune("a"), mine=custom)):
        with pytest.raises(BadAdapterConfig, match="custom adapter"):
            to_config(adapter)


def test_descriptions_cover_every_preset() -> None:
    assert (
        set(systems.SYSTEMS.describe())
        == set(systems.SYSTEMS.names())
        >= {
            "samed",
            "med_sa",
            "lora",
            "decoder",
            "linear",
            "full",
        }
    )


def test_parts_that_an_earlier_version_sorted_by_name_are_put_in_order() -> None:
    config = systems.adapter_config("context", SPEC)
    stored = {**config, "parts": dict(sorted(config["parts"].items()))}
    assert list(stored["parts"]) == ["context", "decoder"]
    assert list(from_config(stored).config["parts"]) == ["decoder", "context"]
