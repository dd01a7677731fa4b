"""Each primitive in operators of ONNX: ONNX Runtime gives what JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medvfm_jax.export.bundle import network
from medvfm_jax.export.checking import part_record
from medvfm_jax.export.onnx import quantise_onnx, write_onnx
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.parts import Part, Tensor

pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 8, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
DEPTHWISE = RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)
TABLE = RNG.normal(size=(7, 3)).astype(np.float32)


def part_of(function, arrays, *, open_axis=False):
    def shape(array):
        return ("many", *array.shape[1:]) if open_axis else array.shape

    inputs = tuple(Tensor(f"x{i}", shape(a), str(a.dtype), "") for i, a in enumerate(arrays))
    count = len(jax.eval_shape(function, *arrays))
    outputs = tuple(Tensor(f"y{i}", (), "", "") for i in range(count))
    return Part("model", function, inputs, outputs)


def check(folder, function, *arrays, open_axis=False, others=()):
    part = part_of(function, arrays, open_axis=open_axis)
    write_onnx(part, folder / "model.onnx")
    run = network(folder / "model.onnx", part_record(part), threads=1)
    for given in (arrays, *others):
        for got, wanted in zip(run(*given), function(*map(jnp.asarray, given)), strict=True):
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def conv(x, kernel, padding="SAME", window_strides=(1, 1), **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, window_strides, padding, dimension_numbers=layout, **options)


CASES = {
    "arithmetic": lambda x: (x + 1, x - x[:1], 2 * x, x / 3, -x, x * x, jnp.abs(x)),
    "curves": lambda x: (jnp.exp(x), jnp.tanh(x), jax.nn.sigmoid(x), lax.erf(x), lax.erfc(x), jnp.sin(x), jnp.cos(x)),
    "roots": lambda x: (jnp.sqrt(x * x), lax.rsqrt(x * x + 1), jnp.log(x * x + 1), jnp.log1p(x * x), jnp.expm1(x)),
    "rounding": lambda x: (
        jnp.round(x * 3), jnp.round(jnp.round(4 * x) / 2), lax.round(jnp.round(4 * x) / 2),
        jnp.floor(x), jnp.ceil(x),
    ),
    "powers": lambda x: (x**2, x**3, jnp.power(x * x, 0.3)),
    "comparisons": lambda x: (x > 0, x >= 0, x < 0, x <= 0, x == x, x != 0, (x > 0) & (x < 1), ~(x > 0)),
    "choice": lambda x: (jnp.where(x > 0, x, -1.0), jnp.maximum(x, 0.1), jnp.minimum(x, 0.1), jnp.clip(x, -0.5, 0.5)),
    "casts": lambda x: ((x > 0).astype(jnp.float32), (x * 5).astype(jnp.int32)),
    "reductions": lambda x: (x.sum(), x.sum((1, 3)), x.max(-1), x.min(0), x.mean((0, 1)), x.argmax(1), x.argmin(-1)),
    "shapes": lambda x: (x.reshape(12, -1), x.transpose(3, 0, 2, 1), x[:, None], x[0], jnp.flip(x, (1, 2))),
    "cuts": lambda x: (
        x[:, 1:5:2], x[..., -1], *jnp.split(x, [1, 3], axis=-1), jnp.pad(x, [(0, 0), (1, 2), (0, 1), (0, 0)]),
    ),
    "less than it was": lambda x: (lax.pad(x, 0.0, [(0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0)]),),
    "joins": lambda x: (jnp.concatenate([x, 2 * x], 2), jnp.stack([x, x + 1], 1), jnp.cumsum(x, 1)),
    "repeats": lambda x: (jnp.tile(x, (1, 2, 1, 3)), jnp.tile(x[0], (2, 1, 1, 1)), jnp.tile(x[:1], (3, 1, 1, 1))),
    "broadcast constants are stored": lambda x: (
        jnp.concatenate([x, jnp.broadcast_to(KERNEL[0, 0, :, 0], x.shape)], 1),
    ),
    "products": lambda x: (
        x @ KERNEL[0, 0], jnp.einsum("bhwc,bhwd->bcd", x, x), jnp.einsum("bhwc,bgwc->bwhg", x, x),
        jnp.einsum("Hh,bhwc->bHwc", TABLE[:6, :1] @ TABLE[:6, :1].T, x), jnp.vdot(x, x),
    ),
    "softmax": lambda x: (jax.nn.softmax(x, -1), jax.nn.softmax(x, 1), jax.nn.gelu(x, approximate=False)),
    "convolutions": lambda x: (
        conv(x, KERNEL), conv(x, KERNEL, window_strides=(2, 2)), conv(x, KERNEL, padding=((0, 1), (2, 0))),
        conv(x, DEPTHWISE, feature_group_count=4), conv(x, KERNEL, rhs_dilation=(2, 2)),
        conv(x, KERNEL, padding=((-1, 0), (0, -2))),
    ),
    "transposed convolution": lambda x: (lax.conv_transpose(x, KERNEL, (2, 3), "SAME"),),
    "pooling": lambda x: (lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),),
    "tables": lambda x: (
        jnp.asarray(TABLE)[jnp.clip((3 * x).astype(jnp.int32), 0, 6)], jnp.take(x, jnp.array([2, 0]), 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_primitive(tmp_path, name):
    check(tmp_path, CASES[name], X)


@pytest.mark.slow
def test_an_open_size_follows_the_input(tmp_path):
    def function(x):
        own = jnp.broadcast_to(jnp.asarray(TABLE), (x.shape[0], 7, 3))
        tokens = jnp.concatenate([own, x], axis=1)  # a constant beside what is open
        weights = jax.nn.softmax(tokens @ jnp.swapaxes(tokens, 1, 2), -1)
        row = jnp.tile(x[:1].sum(0, keepdims=True), (x.shape[0], 1, 1))  # as often as images are given
        return (weights @ tokens).reshape(x.shape[0], -1), jnp.where(x > 0, x, 0).sum((1, 2)), x - row

    def of(n):
        return RNG.normal(size=(n, 2, 3)).astype(np.float32)

    check(tmp_path, function, of(2), open_axis=True, others=[(of(n),) for n in (1, 5, 7)])


def test_constants_are_computed_and_stored_once(tmp_path):
    onnx = pytest.importorskip("onnx")
    big = np.ones((64, 64), np.float32)
    check(
        tmp_path, lambda x: (x @ jnp.sin(big), x @ jnp.sin(big) + jnp.sum(big)), np.ones((2, 64), np.float32)
    )
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert not {"Sin", "ReduceSum"} & {node.op_type for node in graph.node}
    assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 1.2 * big.nbytes


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: (lax.sort(x),), "sort"),
        (lambda x: (lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x),), "while"),
        (lambda x: (lax.pad(x, 0.0, [(0, 0, 1)] * 4),), "between elements"),
    ],
)
def test_what_onnx_lacks_is_one_sentence(tmp_path, function, words):
    with pytest.raises(CannotExport, match=words):
        write_onnx(part_of(function, [X]), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_eight_bits_are_smaller_and_near(tmp_path):
    weight = RNG.normal(size=(256, 256)).astype(np.float32)
    part = part_of(lambda x: (x @ weight,), [X[0, 0] @ RNG.normal(size=(4, 256)).astype(np.float32)])
    x = RNG.normal(size=(8, 256)).astype(np.float32)
    write_onnx(part, tmp_path / "model.onnx")
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size < 0.3 * (tmp_path / "model.onnx").stat().st_size
    (found,), wanted = network(tmp_path / "small.onnx", part_record(part))(x), x @ weight
    assert 0 < np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.03
