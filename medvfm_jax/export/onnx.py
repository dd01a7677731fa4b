"""A function of JAX as an ONNX model, from the flat list of its primitives.

jax2onnx 0.17.1 was measured first: LiteMedSAM's encoder took it 239 s of a shared core where this takes seconds, a
decoder with an open number of prompts came out with a wrong size, and it holds orbax below what this package uses.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jax.extend.core import Literal

from medvfm_jax.export.flat import CannotFlatten, flat
from medvfm_jax.export.onnx_fusions import SCALED
from medvfm_jax.export.onnx_graph import CannotExport, Graph, Value, constant
from medvfm_jax.export.onnx_operators import emit
from medvfm_jax.export.parts import Part


def write_onnx(part: Part, path: Path) -> None:
    """Write a part as ONNX (opset 20), its weights within.

    Args:
        part: what to write; sizes may be left open.
        path: of the file.

    Raises:
        CannotExport: an operation without equal in ONNX, or 2 GiB and more of weights.
    """
    try:
        closed = flat(part.portable, *part.shapes())
    except CannotFlatten as error:
        raise CannotExport(f"ONNX export cannot write out {error}; use --to stablehlo.") from error
    found = {
        symbol: (tensor.name, tensor.shape.index(symbol))
        for symbol in part.symbols
        for tensor in part.inputs
        if symbol in tensor.shape
    }
    graph = Graph(found)
    results = _emitted(graph, closed, part)
    outputs = [
        (tensor.name, variable.aval.shape, variable.aval.dtype)
        for tensor, variable in zip(part.outputs, closed.jaxpr.outvars, strict=True)
    ]
    path.write_bytes(graph.model([tensor[:3] for tensor in part.inputs], outputs, results))


def _emitted(graph: Graph, closed: Any, part: Part) -> list[Value]:
    """Add every equation whose result is used; gives the values of the outputs."""
    jaxpr = closed.jaxpr
    values: dict[Any, Value] = {
        variable: constant(array) for variable, array in zip(jaxpr.constvars, closed.consts)
    }
    for variable, tensor in zip(jaxpr.invars, part.inputs, strict=True):
        shape = tuple(variable.aval.shape)
        values[variable] = Value(shape, shape, variable.aval.dtype, None, tensor.name)

    def read(atom: Any) -> Value:
        return constant(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else values[atom]

    for equation in _used(jaxpr):
        found = emit(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _used(jaxpr: Any) -> list[Any]:
    """Equations that the outputs depend on, in order."""
    wanted = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if wanted.isdisjoint(equation.outvars):
            continue
        kept.append(equation)
        wanted.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return kept[::-1]


def quantise_onnx(path: Path, out: Path) -> None:
    """8-bit weights for each column and 8-bit activations as they come, of the linear layers of an ONNX file.

    Convolutions of one pixel, which are products too, stay in float32: their inputs hold channels of very different
    size and share one step of 8 bits (LiteMedSAM: the embedding is off by 20 % with them and by 8 % without).
    Weights are unsigned: without VNNI, products of signed weights saturate at 16 bits (LiteMedSAM: off by 42 %).

    Args:
        path: of the file in float32.
        out: of the file to write.
    """
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    said = logging.getLogger()
    level = said.level
    said.setLevel(logging.ERROR)  # it advises a preparation that would merge what is merged already
    options = {
        "op_types_to_quantize": ["MatMul"],
        "weight_type": QuantType.QUInt8,
        "per_channel": True,
        "nodes_to_exclude": _in_float32(path),
    }
    try:
        quantize_dynamic(path, out, **options)
    finally:
        said.setLevel(level)


def _in_float32(path: Path) -> list[str]:
    """Names of the products that are not quantised."""
    import onnx

    graph = onnx.load(path).graph
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1].startswith(SCALED)  # followed by batch norm
    ]
