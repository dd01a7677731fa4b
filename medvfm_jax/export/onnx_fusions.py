"""Patterns of a written ONNX graph that one operator or constant can stand for: GELU, layer norm, scales of channels.

Runtimes recognise what PyTorch's exporter writes; what JAX's primitives give is the same in other nodes, and each of
them goes through memory. On one core LiteMedSAM's encoder spent half of its time between the products.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HALF_ROOT = float(np.float32(0.5**0.5))
_GELU = ("Mul", "x", ("Add", 0.5, ("Mul", 0.5, ("Erf", ("Mul", "x", _HALF_ROOT)))))


def _mean(of: Any, axes: str, shape: str, count: str) -> Any:
    return ("Div", ("Reshape", ("ReduceSum", of, axes), shape), count)


_CENTRED = ("Sub", "x", _mean("x", "axes", "shape", "count"))
_INVERSE = (
    "Reciprocal",
    ("Sqrt", ("Add", _mean(("Mul", _CENTRED, _CENTRED), "axes", "shape", "count"), "epsilon")),
)
_LAYER_NORM = ("Add", ("Mul", _CENTRED, ("Mul", _INVERSE, "scale")), "bias")
SCALED = (
    "weights_scaled_by_"  # start of the name of weights that took a scale of the channels, as batch norm is
)
_COMMUTE = ("Add", "Mul")


class Fused(NamedTuple):
    """Nodes in order, and the constants that they name, new ones among them."""

    nodes: list[Any]
    constants: dict[str, Any]


def fused(nodes: Sequence[Any], constants: Sequence[Any], outputs: Sequence[str]) -> Fused:
    """The same graph with fewer nodes.

    Args:
        nodes: ``NodeProto``, in order.
        constants: ``TensorProto``.
        outputs: names of the tensors that the graph gives.

    Returns:
        Nodes and constants that the outputs depend on.
    """
    graph = _Graph(nodes, constants, outputs)
    for node in list(graph.nodes):
        graph.replace(node)
    return graph.used(outputs)


class _Graph:
    """Nodes by what they give, while they are being replaced."""

    def __init__(self, nodes: Sequence[Any], constants: Sequence[Any], outputs: Sequence[str]):
        self.nodes = list(nodes)
        self._constants = {tensor.name: tensor for tensor in constants}
        self._by_output = {name: node for node in nodes for name in node.output}
        self._uses = Counter([*outputs, *(name for node in nodes for name in node.input)])

    def replace(self, node: Any) -> None:
        """Put one node in the place of the pattern that ends in this one, or a scale into a weight."""
        from onnx import helper

        if node.op_type not in _COMMUTE:
            return
        name, found = node.output[0], None
        if (bound := self._match(name, _GELU, {})) is not None:
            found = helper.make_node("Gelu", [bound["x"]], [name], name=name)
        elif (bound := self._match(name, _LAYER_NORM, {})) is not None:
            found = self._layer_norm(name, bound)
        if found is not None:
            self.nodes[next(i for i, other in enumerate(self.nodes) if other is node)] = found
            self._by_output[name] = found
        else:
            self._into_the_product(node)

    def used(self, outputs: Sequence[str]) -> Fused:
        """What the outputs depend on."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.output):
                kept.append(node)
                wanted.update(node.input)
        return Fused(kept[::-1], {name: t for name, t in self._constants.items() if name in wanted})

    def _array(self, name: str) -> NDArray | None:
        from onnx import numpy_helper

        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def _store(self, array: NDArray, name: str) -> str:
        from onnx import numpy_helper

        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _match(self, name: str, pattern: Any, bound: dict[str, str]) -> dict[str, str] | None:
        """Names of tensors for the words of a pattern; None where the tensor ``name`` is something else."""
        return next(self._matches(name, pattern, bound), None)

    def _matches(self, name: str, pattern: Any, bound: dict[str, str]) -> Iterator[dict[str, str]]:
        if isinstance(pattern, str):
            if bound.get(pattern, name) == name:
                yield bound | {pattern: name}
        elif isinstance(pattern, float):
            array = self._array(name)
            if array is not None and array.size == 1 and np.allclose(array, pattern, rtol=1e-6, atol=0):
                yield bound
        else:
            operator, *parts = pattern
            node = self._by_output.get(name)
            if node is None or node.op_type != operator or len(node.input) != len(parts):
                return
            orders = [list(node.input)]
            if operator in _COMMUTE:
                orders.append(orders[0][::-1])
            for order in orders:
                yield from self._match_all(order, parts, bound)

    def _match_all(
        self, names: Sequence[str], patterns: Sequence[Any], bound: dict[str, str]
    ) -> Iterator[dict[str, str]]:
        if not names:
            yield bound
            return
        for found in self._matches(names[0], patterns[0], bound):
            yield from self._match_all(names[1:], patterns[1:], found)

    def _layer_norm(self, name: str, bound: dict[str, str]) -> Any:
        """The node, or None where what was found normalises something else than the last axis."""
        from onnx import helper

        axes, count, epsilon, scale, bias = (
            self._array(bound[word]) for word in ("axes", "count", "epsilon", "scale", "bias")
        )
        if any(array is None for array in (axes, count, epsilon, scale, bias)):
            return None
        fits = (
            scale.shape == bias.shape == (1,) * (scale.ndim - 1) + scale.shape[-1:]
            and axes.tolist() == [scale.ndim - 1]
            and epsilon.size == 1
            and count.size == 1
            and float(count.item()) == scale.size
        )
        if not fits:
            return None
        inputs = [bound["x"], self._store(scale.ravel(), f"scale_of_{name}")]
        inputs.append(self._store(bias.ravel(), f"shift_of_{name}"))
        options = {"axis": -1, "epsilon": float(epsilon.item())}
        return helper.make_node("LayerNormalization", inputs, [name], name=name, **options)

    def _into_the_product(self, node: Any) -> None:
        """Put numbers of the channels that a product is multiplied by, or that are added to a convolution, into it."""
        for data, factor in (tuple(node.input), tuple(node.input)[::-1]):
            array = self._array(factor)
            if array is None or array.ndim == 0 or array.size < 2 or array.size != array.shape[-1]:
                continue
            source = self._product_of(data, array.size)
            if source is None:
                continue
            if node.op_type == "Mul":
                self._scale(source, array.ravel(), f"{SCALED}{node.name}")
            elif source.op_type == "Conv" and len(source.input) == 2:
                source.input.append(self._store(array.ravel(), f"shift_of_{node.name}"))
            else:
                continue
            self._rename(node, data)
            return

    def _product_of(self, name: str, channels: int) -> Any:
        """The product with a constant whose columns are the last axis of a tensor, or None if others use it."""
        while self._uses[name] == 1 and (node := self._by_output.get(name)) is not None:
            if node.op_type == "Reshape":  # whose last size stays: then each number keeps its channel
                target = self._array(node.input[1])
                if target is None or target[-1] != channels:
                    return None
            elif node.op_type == "Transpose":
                above = self._by_output.get(node.input[0])
                order = next(list(a.ints) for a in node.attribute if a.name == "perm")
                if above is None or above.op_type != "Conv" or order[-1] != 1:
                    return None
            else:
                place = {"MatMul": -1, "Conv": 0}.get(node.op_type)
                weight = None if place is None else self._array(node.input[1])
                return node if weight is not None and weight.shape[place] == channels else None
            name = node.input[0]
        return None

    def _scale(self, product: Any, factor: NDArray, name: str) -> None:
        weight = self._array(product.input[1])
        wide = factor if product.op_type == "MatMul" else factor.reshape(-1, *(1,) * (weight.ndim - 1))
        product.input[1] = self._store((weight * wide).astype(weight.dtype), name)
        if len(product.input) > 2:
            product.input[2] = self._store(self._array(product.input[2]) * factor, f"shift_of_{name}")

    def _rename(self, node: Any, to: str) -> None:
        """Leave a node out: whoever took what it gives takes another tensor."""
        gone = node.output[0]
        self.nodes = [other for other in self.nodes if other is not node]
        for other in self.nodes:
            for i, name in enumerate(other.input):
                if name == gone:
                    other.input[i] = to
        self._uses[to] = self._uses[gone]
