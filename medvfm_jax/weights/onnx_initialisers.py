"""Read the weights inside an ONNX file as a PyTorch-style state dict, without the onnx package.

PyTorch's exporter keeps the names of most parameters, but the weight of a Linear layer becomes an anonymous
constant (`onnx::MatMul_1966`), transposed.  The graph gives the name back: the constant feeds a MatMul, whose
output meets the layer's bias in an Add.  A ViT's position embedding is cut in two constants, one for the class
token and one for the patches; they are joined again.
Sources: field numbers onnx/onnx.proto, wire format protobuf's encoding guide.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medvfm_jax.weights.torch_opcodes import BadCheckpoint

MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALISER = 7, 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_OP = 1, 2, 4
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_NAME, TENSOR_RAW, TENSOR_LOCATION = 1, 2, 4, 8, 9, 14
DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
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
        nodes, tensors = _graph(data)
    except (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise BadCheckpoint(f"{path}: cannot be read as ONNX ({type(error).__name__}: {error}).") from error
    if not tensors:
        raise BadCheckpoint(f"{path}: no weights inside; an ONNX file with its initialisers was expected.")
    return _named(nodes, tensors, path)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Protobuf message -> (field number, value); length-delimited values stay views of the file."""
    at = 0
    while at < len(data):
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


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _graph(data: memoryview) -> tuple[list[Node], dict[str, np.ndarray]]:
    graph = next((value for field, value in _fields(data) if field == MODEL_GRAPH), None)
    if not isinstance(graph, memoryview):
        raise ValueError("no graph")
    nodes, tensors = [], {}
    for field, value in _fields(graph):
        if field == GRAPH_NODE:
            nodes.append(_node(value))
        elif field == GRAPH_INITIALISER:
            name, tensor = _tensor(value)
            tensors[name] = tensor
    return nodes, tensors


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_OP: [""]}
    for field, value in _fields(data):
        if field in texts:
            texts[field].append(bytes(value).decode())
    return Node(texts[NODE_OP][-1], tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]))


def _tensor(data: memoryview) -> tuple[str, np.ndarray]:
    shape, name, dtype, raw = [], "", None, memoryview(b"")
    for field, value in _fields(data):
        if field == TENSOR_DIMS:
            shape += _numbers(value)
        elif field == TENSOR_TYPE:
            dtype = np.dtype(DTYPES[value])
        elif field == TENSOR_NAME:
            name = bytes(value).decode()
        elif field in (TENSOR_RAW, TENSOR_FLOATS) and isinstance(value, memoryview):
            raw = value
        elif field == TENSOR_LOCATION and value:
            raise ValueError(f"{name or 'a tensor'} lies in another file")
    if dtype is None or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{name or 'a tensor'} claims shape {tuple(shape)} but has {len(raw)} bytes")
    return name, np.frombuffer(raw, dtype).reshape(shape)


def _numbers(value: int | memoryview) -> list[int]:
    """One dimension, or several packed into one field."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _named(nodes: list[Node], tensors: dict[str, np.ndarray], path: Path | str) -> dict[str, np.ndarray]:
    """Give anonymous constants the names they had in PyTorch; constants that cannot be named are an error."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    state = {name: value for name, value in tensors.items() if "::" not in name}
    positions: list[np.ndarray] = []
    unnamed = []
    for name, value in tensors.items():
        if "::" not in name:
            continue
        layer = _linear_of(name, readers, state)
        if layer is not None:
            state[layer + ".weight"] = value.T
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
        state[f"{prefix}position_embeddings"] = np.concatenate(ordered, axis=1)
    elif positions:
        unnamed.append(f"{len(positions)} position constants")
    if unnamed:
        raise BadCheckpoint(
            f"{path}: cannot tell which layers these weights belong to: {', '.join(unnamed[:6])}."
        )
    return state


def _linear_of(name: str, readers: dict[str, list[Node]], state: dict[str, np.ndarray]) -> str | None:
    """Constant -> layer name, if it feeds a MatMul whose result meets `<layer>.bias` in an Add."""
    for node in readers.get(name, []):
        if node.op != "MatMul" or node.inputs[-1] != name:
            continue
        for add in (reader for output in node.outputs for reader in readers.get(output, [])):
            bias = next((i for i in add.inputs if i in state and i.endswith(".bias")), None)
            if add.op == "Add" and bias is not None:
                return bias.removesuffix(".bias")
    return None


def _reads(name: str, readers: dict[str, list[Node]]) -> set[str]:
    return {node.op for node in readers.get(name, [])}


def _embeddings_prefix(state: dict[str, np.ndarray]) -> str | None:
    return next(
        (key.removesuffix("cls_token") for key in state if key.endswith("embeddings.cls_token")), None
    )
