import re
from collections import OrderedDict

import jax
import numpy as np
import pytest

from medvfm_jax.port_tables import rows
from medvfm_jax.port_tables.layouts import LAYOUTS
from medvfm_jax.weights.port import PortError, PortTable, Row, check, to_jax, to_torch
from medvfm_jax.weights.tree import flatten, unflatten

rng = np.random.default_rng(0)

TABLE = PortTable(
    "toy",
    (
        *rows.conv("stem.{m:0|2}"),
        *rows.dense("blocks.{i}.{m:fc1|fc2}"),
        *rows.dense(("blocks.{i}.q", "blocks.{i}.k", "blocks.{i}.v"), "blocks_{i}/qkv"),
        *rows.norm("blocks.{i}.norm"),
        *rows.conv_transpose("up"),
        *rows.array("table"),
    ),
    ignored=("head.{m:weight|bias}", "counter.{i}"),
    aliases=(("tied", "table"),),
    prefixes=("backbone.",),
)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def state(prefix=""):
    found = OrderedDict({f"{prefix}stem.0.weight": normal(4, 3, 2, 2), f"{prefix}stem.0.bias": normal(4)})
    found |= {f"{prefix}stem.2.weight": normal(4, 1, 3, 3), f"{prefix}stem.2.bias": normal(4)}
    for i in range(12):
        for name, outputs in (("fc1", 6), ("fc2", 4), ("q", 4), ("k", 2), ("v", 3)):
            found[f"blocks.{i}.{name}.weight"] = normal(outputs, 4 if name != "fc2" else 6)
            found[f"blocks.{i}.{name}.bias"] = normal(outputs)
        found[f"blocks.{i}.norm.weight"], found[f"blocks.{i}.norm.bias"] = normal(4), normal(4)
    found |= {"up.weight": normal(4, 5, 2, 2), "up.bias": normal(5), "table": normal(3, 7)}
    return found


def shapes():
    block = {
        "fc1": {"kernel": (4, 6), "bias": (6,)},
        "fc2": {"kernel": (6, 4), "bias": (4,)},
        "qkv": {"kernel": (4, 9), "bias": (9,)},
        "norm": {"scale": (4,), "bias": (4,)},
    }
    tree = {
        "stem_0": {"kernel": (2, 2, 3, 4), "bias": (4,)},
        "stem_2": {"kernel": (3, 3, 1, 4), "bias": (4,)},
        "up": {"kernel": (2, 2, 4, 5), "bias": (5,)},
        "table": (3, 7),
    } | {f"blocks_{i}": block for i in range(12)}
    return {"params": unflatten({k: np.broadcast_to(np.float32(0), v) for k, v in flatten(tree).items()})}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_values_arrive_where_the_layout_says(prefix):
    source = state(prefix)
    params = to_jax(TABLE, source, shapes())["params"]
    np.testing.assert_array_equal(params["blocks_11"]["fc1"]["kernel"], source["blocks.11.fc1.weight"].T)
    kernel = params["stem_0"]["kernel"]
    assert kernel[1, 0, 2, 3] == source[f"{prefix}stem.0.weight"][3, 2, 1, 0]
    fused = params["blocks_3"]["qkv"]
    np.testing.assert_array_equal(fused["kernel"][:, 4:6], source["blocks.3.k.weight"].T)
    np.testing.assert_array_equal(
        fused["bias"], np.concatenate([source[f"blocks.3.{m}.bias"] for m in "qkv"])
    )
    assert params["up"]["kernel"][0, 1, 2, 3] == source["up.weight"][2, 3, 1, 0]
    assert {value.dtype for value in flatten(params).values()} == {np.dtype(np.float32)}


def test_a_consumed_state_gives_the_same_and_is_left_without_what_was_used():
    source = state()
    kept = dict(source)
    jax.tree.map(
        np.testing.assert_array_equal,
        to_jax(TABLE, source, shapes(), consume=True),
        to_jax(TABLE, kept, shapes()),
    )
    assert source.keys() == {key for key in kept if TABLE.is_ignored(key)}


def test_round_trip_is_exact():
    """Joined rows split evenly on the way back, so the three parts are of one size here."""
    table = PortTable("even", rows.dense(("q", "k", "v"), "qkv") + rows.conv_transpose("up") + rows.conv("c"))
    source = {
        f"{m}.{leaf}": normal(*shape) for m in "qkv" for leaf, shape in (("weight", (4, 6)), ("bias", (4,)))
    }
    source |= {"up.weight": normal(4, 5, 2, 3), "up.bias": normal(5), "c.weight": normal(2, 3, 4, 5)}
    source |= {"c.bias": normal(2)}
    target = {"qkv": {"kernel": (6, 12), "bias": (12,)}, "up": {"kernel": (2, 3, 4, 5), "bias": (5,)}}
    target |= {"c": {"kernel": (4, 5, 3, 2), "bias": (2,)}}
    params = to_jax(table, source, unflatten({k: np.zeros(v) for k, v in flatten(target).items()}))
    back = to_torch(table, params)
    assert set(back) == set(source)
    for key in source:
        np.testing.assert_array_equal(back[key], source[key])


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_layouts_invert(name):
    layout = LAYOUTS[name]
    sides = {
        "pointwise": 1,
        "doubled": 2,
        "cubes_of_2": 2,
        "cubes_of_16": 16,
    }  # of kernels that become matrices
    shape = (2, 3, *[sides[name]] * 3) if name in sides else (2, 3, 4, 5, 6)[: layout.ndim or 3]
    value = normal(*shape)
    there = layout.to_jax(value)
    np.testing.assert_array_equal(layout.to_torch(there), value)
    np.testing.assert_array_equal(layout.to_jax(layout.to_torch(there)), there)


def test_ignored_keys_and_tied_weights():
    source = state()
    source |= {"head.weight": normal(2), "counter.12": np.array(3)}
    source["tied"] = source["table"].copy()
    check(TABLE, source, shapes())
    source["tied"] = source["table"] + 1
    with pytest.raises(PortError, match="tied should repeat table"):
        check(TABLE, source, shapes())
    back = to_torch(TABLE, {"table": source["table"]})
    np.testing.assert_array_equal(back["tied"], source["table"])


def test_one_error_lists_both_sides_with_the_nearest_names():
    source = state()
    source["blocks.3.norm.wieght"] = source.pop("blocks.3.norm.weight")
    source["extra"] = normal(2)
    del source["up.bias"]
    with pytest.raises(PortError) as caught:
        to_jax(TABLE, source, shapes(), where="toy.pth")
    error, message = caught.value, str(caught.value)
    assert error.unused_sources == ("blocks.3.norm.wieght", "extra")
    assert error.missing_targets == ("up/bias", "blocks_3/norm/scale")
    assert "toy.pth" in message
    assert re.search(r"blocks\.3\.norm\.wieght \(nearest: blocks\.3\.norm\.weight\)", message)
    assert re.search(r"blocks\.3\.norm\.weight \(nearest: blocks\.3\.norm\.wieght\)", message)
    assert "2 keys of the file" in message


def test_a_wholly_different_checkpoint_gives_a_short_message():
    source = {f"layer.{i}.weight": normal(2) for i in range(500)}
    with pytest.raises(PortError) as caught:
        check(TABLE, source, shapes())
    assert len(caught.value.unused_sources) == 500
    assert len(str(caught.value).splitlines()) < 25
    assert "... and 498 more" in str(caught.value)


def test_one_part_of_a_join_missing():
    source = state()
    del source["blocks.0.k.weight"]
    with pytest.raises(PortError) as caught:
        check(TABLE, source, shapes())
    assert caught.value.missing_targets == ("blocks_0/qkv/kernel",)
    assert caught.value.unused_sources == ()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("table", normal(7, 3), r"table gives shape \(7, 3\), the model's table is \(3, 7\)"),
        ("blocks.0.fc1.weight", normal(6), "takes 2 axes"),
        ("blocks.0.q.weight", normal(4, 5), "gives shape"),
        ("table", np.zeros((3, 7), np.int64), "holds int64"),
        ("table", np.full((3, 7), np.nan, np.float32), "NaN"),
        ("up.bias", np.array([0, 0, np.inf, 0, 0], np.float32), "infinite"),
    ],
)
def test_contradictions(key, value, message):
    with pytest.raises(PortError, match=message):
        to_jax(TABLE, state() | {key: value}, shapes())


def test_float16_becomes_float32():
    source = state() | {"table": normal(3, 7).astype(np.float16)}
    params = to_jax(TABLE, source, shapes())["params"]
    np.testing.assert_array_equal(params["table"], source["table"].astype(np.float32))


def test_faulty_tables_are_caught():
    target = {"a": np.zeros(2), "b": np.zeros(2)}
    twice = PortTable("twice", (Row(("x",), "a"), Row(("x",), "b")))
    with pytest.raises(PortError, match="uses x 2 times"):
        check(twice, {"x": normal(2)}, target)
    with pytest.raises(PortError, match="1 parameters of the model are not filled:\n  b"):
        check(PortTable("short", (Row(("x",), "a"),)), {"x": normal(2)}, target)
    with pytest.raises(ValueError, match="2 rows fill a"):
        check(PortTable("both", (Row(("x",), "a"), Row(("y",), "a"))), {}, {"a": np.zeros(2)})
    with pytest.raises(ValueError, match="same placeholders"):
        Row(("x.{i}",), "a")
    with pytest.raises(ValueError, match="unknown layout"):
        Row(("x",), "a", "upside_down")
    with pytest.raises(PortError, match="no row for b"):
        to_torch(PortTable("short", (Row(("x",), "a"),)), target)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("image_encoder.blocks.{i}.attn.{m:qkv|proj}", "image_encoder/blocks_{i}/attn/{m}"),
        ("neck.{m:0|2}", "neck_{m}"),
        ("output_upscaling.1", "output_upscaling_1"),
        ("layers.{i}.blocks.{j}.mlp.norm", "layers_{i}/blocks_{j}/mlp/norm"),
    ],
)
def test_naming_rule(key, path):
    assert rows.path_of(key) == path
