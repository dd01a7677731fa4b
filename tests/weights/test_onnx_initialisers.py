import time
import tracemalloc

import numpy as np
import pytest

from medvfm_jax.weights import onnx_initialisers
from medvfm_jax.weights.tables import choose
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

rng = np.random.default_rng(0)


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(op, inputs, output):
    return field(1, b"".join(field(1, i) for i in inputs) + field(2, output) + field(4, op))


def tensor(name, array, packed=False, kind=None):
    dims = (
        field(1, b"".join(map(varint, array.shape))) if packed else b"".join(field(1, n) for n in array.shape)
    )
    kind = kind or {"f": 1, "i": 7}[array.dtype.kind]
    return field(5, dims + field(2, kind) + field(8, name) + field(9, array.tobytes()))


def model(*parts):
    return field(1, 8) + field(2, "test") + field(7, b"".join(parts))


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def vit_file(tmp_path):
    """A one-block DINOv2 as PyTorch's exporter writes it: MatMul constants and position parts without names."""
    q, patches, cls = normal(4, 4), normal(1, 9, 4), normal(1, 1, 4)
    layer = "backbone.encoder.layer.0.attention.attention."
    parts = [
        node("Reshape", ["onnx::Reshape_7", "shape"], "r"),
        node("Concat", ["onnx::Concat_5", "r"], "p"),
        tensor("backbone.embeddings.cls_token", normal(1, 1, 4)),
        tensor("onnx::Reshape_7", patches, packed=True),
        tensor("onnx::Concat_5", cls),
        tensor("onnx::Gather_9", np.array([3], np.int64)),
    ]
    state = {}
    for index, name in enumerate(("query", "key", "value")):
        state[name] = (normal(4, 4), normal(4))
        parts += [
            node("MatMul", ["x", f"onnx::MatMul_{index}"], f"y{index}"),
            node("Add", [f"{layer}{name}.bias", f"y{index}"], f"z{index}"),
            tensor(f"onnx::MatMul_{index}", state[name][0]),
            tensor(f"{layer}{name}.bias", state[name][1]),
        ]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(*parts))
    return path, layer, state, np.concatenate([cls, patches], axis=1), q


def test_names_return_from_the_graph(tmp_path):
    path, layer, state, positions, _ = vit_file(tmp_path)
    read = onnx_initialisers.read(path)
    for name, (kernel, bias) in state.items():
        np.testing.assert_array_equal(read[f"{layer}{name}.weight"], kernel.T)  # ONNX holds (in, out)
        np.testing.assert_array_equal(read[f"{layer}{name}.bias"], bias)
    np.testing.assert_array_equal(read["backbone.embeddings.position_embeddings"], positions)
    assert not [key for key in read if "::" in key]
    assert choose(read).name == "hf_dinov2"


def test_unnamable_weights_are_an_error(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(
        model(node("MatMul", ["x", "onnx::MatMul_1"], "y"), tensor("onnx::MatMul_1", normal(4, 4)))
    )
    with pytest.raises(BadCheckpoint, match=r"cannot tell.*onnx::MatMul_1"):
        onnx_initialisers.read(path)


def test_damaged_files_are_one_sentence(tmp_path):
    whole = vit_file(tmp_path)[0].read_bytes()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole) - 1, 31):
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            onnx_initialisers.read(path)
    for content, message in (
        (model(tensor("w", normal(4, 4))[:-3]), "ends early"),
        (model(field(5, field(1, 9) + field(2, 1) + field(8, "w") + field(9, b"1234"))), "claims shape"),
        (model(tensor("w", normal(2), kind=99)), "unknown element type 99"),
        (model(field(5, field(1, 1) + field(2, b"1234") + field(8, "w"))), "unknown element type"),
        (model(node("Add", ["a", "b"], "c")), "no weights inside"),
        (field(1, 8), "no graph"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadCheckpoint, match=message):
            onnx_initialisers.read(path)
    with pytest.raises(BadCheckpoint, match="No such file"):
        onnx_initialisers.read(tmp_path / "missing.onnx")


def peak_bytes(path):
    """(error sentence, bytes allocated at most, seconds of this process) of reading a file that is refused."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(BadCheckpoint) as caught:
        onnx_initialisers.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return str(caught.value), peak, time.process_time() - start


@pytest.mark.parametrize("number", [8, 1, 2, 4])
def test_a_number_where_bytes_belong_allocates_nothing(tmp_path, number):
    """bytes(2**32) are four gigabytes of zeros."""
    path = tmp_path / "m.onnx"
    for outer in (5, 1):  # an initialiser, a node
        path.write_bytes(field(7, field(outer, field(number, 2**32))))
        assert path.stat().st_size < 20
        if (outer, number) not in (
            (5, 1),
            (5, 2),
            (5, 4),
            (1, 8),
        ):  # where a number belongs, or nothing is read
            sentence, peak, _ = peak_bytes(path)
            assert "a number where a message was expected" in sentence
            assert peak < 1 << 20
    path.write_bytes(field(7, 2**32))
    assert peak_bytes(path)[1] < 1 << 20


@pytest.mark.parametrize("dims", [[2**62] * 50_000, [1] * 50_000, [2**20, 2**20], [0, 2**62]])
def test_shapes_are_refused_before_they_are_multiplied(tmp_path, dims):
    path = tmp_path / "m.onnx"
    for packed in (True, False):
        shape = field(1, b"".join(map(varint, dims))) if packed else b"".join(field(1, n) for n in dims)
        path.write_bytes(model(field(5, shape + field(2, 1) + field(8, "w") + field(9, b"1234"))))
        sentence, peak, seconds = peak_bytes(path)
        assert "claims" in sentence
        assert peak < 8 << 20
        assert seconds < 20  # the product over a million axes takes hours


def test_two_tensors_for_one_name_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model(tensor("w", normal(2)), tensor("w", normal(2))))
    with pytest.raises(BadCheckpoint, match="two tensors are called 'w'"):
        onnx_initialisers.read(path)
    parts = [tensor("a.bias", normal(4)), tensor("a.weight", normal(4, 4)), tensor("onnx::M", normal(4, 4))]
    path.write_bytes(model(*parts, node("MatMul", ["x", "onnx::M"], "y"), node("Add", ["a.bias", "y"], "z")))
    with pytest.raises(BadCheckpoint, match=r"are both a\.weight"):
        onnx_initialisers.read(path)
