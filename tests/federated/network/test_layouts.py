"""A payload is read only if its names, kinds, shapes and values are those that were expected."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated import codecs
from medvfm_jax.federated.codecs import feedback
from medvfm_jax.federated.codecs.wire import Codes, message_shapes
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.layouts import layout, payload_bytes, read_payload, write_payload
from medvfm_jax.federated.network.messages import BadMessage

TREE = {
    "w": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.ones(3, jnp.bfloat16),
    "on": jnp.asarray([True, False]),
    "levels": Codes(jnp.arange(5, dtype=jnp.uint8), 3),
    "empty": jnp.zeros((0, 4)),
    "none": None,
}
SHAPES = jax.eval_shape(lambda: TREE)


def read(payload: bytes, found: list | None = None, shapes: object = SHAPES, finite: bool = True) -> object:
    return read_payload(payload, layout(TREE) if found is None else found, shapes, finite)


def test_there_and_back() -> None:
    payload = write_payload(TREE)
    assert len(payload) == payload_bytes(SHAPES) == 24 + 6 + 2 + 2
    back = read(payload)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    assert layout(back) == layout(SHAPES) == layout(TREE)
    assert ["levels", "codes3", [5]] in layout(TREE)


@pytest.mark.parametrize("name", ["int8", "top_k", "drive", "powersgd", "scaled_sign", "count_sketch"])
def test_messages_of_codecs(name: str) -> None:
    codec = codecs.make_codec(name)
    update = {"a": jnp.linspace(-1, 1, 40).reshape(8, 5), "b": jnp.zeros(3)}
    message, _ = codec.encode(jax.random.key(0), codec.init(update), update)
    shapes = message_shapes(codec, update)
    payload = write_payload(message)
    back = read_payload(payload, layout(message), shapes)
    jax.tree.map(np.testing.assert_array_equal, back, message)
    assert len(payload) == payload_bytes(shapes)


def test_a_codec_whose_receiver_remembers_is_refused() -> None:
    codec = feedback.ef21(codecs.top_k(0.5))
    with pytest.raises(BadFederation, match="error_feedback"):
        layout(message_shapes(codec, {"w": jnp.zeros(4)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t | {"w": jnp.zeros((3, 2))},
            r"'w' is float32 of shape \[3, 2\], expected float32 of shape \[2, 3\]",
        ),
        (lambda t: t | {"w": jnp.zeros((2, 3), jnp.int32)}, "'w' is int32"),
        (lambda t: t | {"levels": Codes(t["levels"].values, 4)}, "'levels' is codes4 .* expected codes3"),
        (lambda t: {("v" if k == "w" else k): x for k, x in t.items()}, "holds 'v' where 'w' was expected"),
        (lambda t: t | {"x": jnp.zeros(1)}, "6 parts where 5"),
        (lambda t: {k: x for k, x in t.items() if k != "w"}, "4 parts where 5"),
        (lambda t: t | {"w": jnp.zeros([1] * 20)}, "12 more axes"),
    ],
)
def test_other_names_shapes_and_kinds(change: object, words: str) -> None:
    other = change(TREE)
    with pytest.raises(BadMessage, match=words):
        read(write_payload(other), layout(other))


def test_a_length_that_does_not_fit_the_layout() -> None:
    payload = write_payload(TREE)
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(BadMessage, match="were expected"):
            read(wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    for name in ("w", "half"):
        broken = TREE | {name: TREE[name].at[0].set(bad)}
        with pytest.raises(BadMessage, match=f"'{name}' holds values that are not finite"):
            read(write_payload(broken))
        read(write_payload(broken), finite=False)


def test_booleans_are_zero_or_one() -> None:
    shapes = {"on": jax.ShapeDtypeStruct((2,), bool)}
    with pytest.raises(BadMessage, match="neither 0 nor 1"):
        read_payload(struct.pack("BB", 1, 2), layout(shapes), shapes)
