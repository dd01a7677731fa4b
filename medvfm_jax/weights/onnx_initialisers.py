"""Read the weights inside an ONNX file as a PyTorch-style state dict, without the onnx package.

PyTorch's exporter keeps the names of most parameters, but the weight of a Linear layer becomes an anonymous
constant (`onnx::MatMul_1966`), transposed.  The graph gives the name back: the constant feeds a MatMul, whose
output meets the layer's bias in an Add.  A ViT's position embedding is cut in two constants, one for the class
token and one for the patches; they are joined again.
Sources: field numbers onnx/onnx.proto, wire format protobuf's encoding guide.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medvfm_jax.printable import counted, shortened
from medvfm_jax.weights.byte_budget import ByteBudget
from medvfm_jax.weights.torch_opcodes import MAX_DIMENSIONS, BadCheckpoint

MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALISER = 7, 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_OP = 1, 2, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_NAME, TENSOR_RAW, TENSOR_LOCATION = 1, 2, 4, 8, 9, 14
DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
MAX_FIELDS = 2_000_000  # an exported ViT-L has about 40 000
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Node(NamedTuple):
    """One operation of the graph."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(path: Path | str) -> dict[str, np.ndarray]:
    """ONNX file -> {key: array in PyTorch's layout}.  Raises BadCheckpoint if it cannot be understood."""
    try:
        data = memoryview(np.memmap(path, np.uint8, mode="r"))
        nodes, tensors = _Reader(data, ByteBudget(path, len(data))).graph()
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, IndexError) as error:
        raise BadCheckpoint(f"{path}: cannot be read as ONNX ({error}).") from error
    if not tensors:
        raise BadCheckpoint(f"{path}: no weights inside; an ONNX file with its initialisers was expected.")
    return _named(nodes, tensors, path)


class _Reader:
    """The messages of one file; what is in it is counted, so that a small file cannot take for ever."""

    def __init__(self, data: memoryview, budget: ByteBudget):
        self.data, self.budget, self.fields_left = data, budget, MAX_FIELDS

    def graph(self) -> tuple[list[Node], dict[str, np.ndarray]]:
        graph = next((value for field, value in self.fields(self.data) if field == MODEL_GRAPH), None)
        nodes, tensors = [], {}
        for field, value in self.fields(_bytes(graph)):
            if field == GRAPH_NODE:
                nodes.append(self.node(_bytes(value)))
            elif field == GRAPH_INITIALISER:
                name, tensor = self.tensor(_bytes(value))
                if name in tensors:
                    raise ValueError(f"two tensors are called {shortened(name)!r}")
                tensors[name] = tensor
        return nodes, tensors

    def fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Protobuf message -> (field number, value); length-delimited values stay views of the file."""
        at = 0
        while at < len(data):
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ValueError(f"more than {MAX_FIELDS} fields; this is no exported model")
            tag, at = _varint(data, at)
            field, kind = tag >> 3, tag & 7
            if kind == VARINT:
                value, at = _varint(data, at)
            elif kind in (FIXED64, FIXED32):
                width = 8 if kind == FIXED64 else 4
                value, at = data[at : at + width], at + width
            elif kind == BYTES:
                length, at = _varint(data, at)
                value, at = data[at : at + length], at + length
            else:
                raise ValueError(f"wire type {kind}")
            if at > len(data):
                raise ValueError("the file ends early")
            yield field, value

    def node(self, data: memoryview) -> Node:
        texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_OP: [""]}
        for field, value in self.fields(data):
            if field in texts:
                texts[field].append(_text(value))
        return Node(texts[NODE_OP][-1], tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]))

    def tensor(self, data: memoryview) -> tuple[str, np.ndarray]:
        shape, name, dtype, raw = [], "", None, memoryview(b"")
        for field, value in self.fields(data):
            if field == TENSOR_DIMS:
                shape += _numbers(value, MAX_DIMENSIONS + 1 - len(shape))
                if len(shape) > MAX_DIMENSIONS:
                    raise ValueError(
                        f"{shortened(name) or 'a tensor'} claims more than {MAX_DIMENSIONS} axes"
                    )
            elif field == TENSOR_TYPE:
                if not isinstance(value, int) or value not in DTYPES:
                    raise ValueError(
                        f"{shortened(name) or 'a tensor'} has the unknown element type {value!r:.40}"
                    )
                dtype = np.dtype(DTYPES[value])
            elif field == TENSOR_NAME:
                name = _text(value)
            elif field in (TENSOR_RAW, TENSOR_FLOATS) and isinstance(value, memoryview):
                raw = value
            elif field == TENSOR_LOCATION and value:
                raise ValueError(f"{shortened(name) or 'a tensor'} lies in another file")
        if dtype is None:
            raise ValueError(f"{shortened(name) or 'a tensor'} has no element type")
        if self.budget.elements(name, shape, dtype.itemsize) * dtype.itemsize != len(raw):
            raise ValueError(
                f"{shortened(name) or 'a tensor'} claims shape {tuple(shape)} but has {counted(len(raw), 'byte')}"
            )
        return name, np.frombuffer(raw, dtype).reshape(shape)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _bytes(value: int | memoryview | None) -> memoryview:
    """A length-delimited field; a number in its place would else become as many bytes as it says."""
    if not isinstance(value, memoryview):
        raise ValueError("no graph" if value is None else "a number where a message was expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")


def _numbers(value: int | memoryview, most: int) -> list[int]:
    """One dimension, or several packed into one field; of too many, one more than may be."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value) and len(numbers) < most:
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _named(nodes: list[Node], tensors: dict[str, np.ndarray], path: Path | str) -> dict[str, np.ndarray]:
    """Give anonymous constants the names they had in PyTorch; constants that cannot be named are an error."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in set(node.inputs):
            readers.setdefault(name, []).append(node)
    state = {name: value for name, value in tensors.items() if "::" not in name}
    layers = _layers(nodes, state)
    positions: list[np.ndarray] = []
    unnamed = []
    for name, value in tensors.items():
        if "::" not in name:
            continue
        layer = _linear_of(name, readers, layers)
        if layer is not None:
            _add(state, layer + ".weight", value.T, path)
        elif (
            value.ndim == 3
            and value.shape[0] == 1
            and _reads(name, readers) <= {"Concat", "Reshape", "Slice"}
        ):
            positions.append(value)
        elif value.dtype.kind == "f":
            unnamed.append(name)
    if len(positions) == 2 and (prefix := _embeddings_prefix(state)) is not None:
        ordered = sorted(positions, key=lambda value: value.shape[1])
        _add(state, f"{prefix}position_embeddings", _joined(ordered, path), path)
    elif positions:
        unnamed.append(f"{len(positions)} position constants")
    if unnamed:
        raise BadCheckpoint(
            f"{path}: cannot tell which layers these weights belong to: {', '.join(map(shortened, unnamed[:6]))}."
        )
    return state


def _add(state: dict[str, np.ndarray], key: str, value: np.ndarray, path: Path | str) -> None:
    if key in state:
        raise BadCheckpoint(f"{path}: two tensors of the file are both {shortened(key)}.")
    state[key] = value


def _joined(parts: list[np.ndarray], path: Path | str) -> np.ndarray:
    if parts[0].shape[2] != parts[1].shape[2] or parts[0].dtype != parts[1].dtype:
        raise BadCheckpoint(f"{path}: the two parts of the position embedding do not fit each other.")
    return np.concatenate(parts, axis=1)


def _layers(nodes: list[Node], state: dict[str, np.ndarray]) -> dict[str, str]:
    """Value -> name of the layer, for every value that meets `<layer>.bias` in an Add; the first Add counts."""
    layers: dict[str, str] = {}
    for node in nodes:
        bias = next((i for i in node.inputs if i in state and i.endswith(".bias")), None)
        if node.op == "Add" and bias is not None:
            for value in node.inputs:
                layers.setdefault(value, bias.removesuffix(".bias"))
    return layers


def _linear_of(name: str, readers: dict[str, list[Node]], layers: dict[str, str]) -> str | None:
    """Constant -> layer name, if it feeds a MatMul whose result meets the layer's bias."""
    for node in readers.get(name, []):
        if node.op == "MatMul" and node.inputs[-1] == name:
            for output in node.outputs:
                if output in layers:
                    return layers[output]
    return None


def _reads(name: str, readers: dict[str, list[Node]]) -> set[str]:
    return {node.op for node in readers.get(name, [])}


def _embeddings_prefix(state: dict[str, np.ndarray]) -> str | None:
    return next(
        (key.removesuffix("cls_token") for key in state if key.endswith("embeddings.cls_token")), None
    )
