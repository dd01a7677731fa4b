"""An ONNX graph while it is written: values that may be constants, broadcasts that are put off, symbolic sizes.

A value has the shape it has in JAX and the one it is stored with, which may have ones where it is broadcast: operators
of ONNX broadcast themselves, so most broadcasts never become a node.
"""

import re
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.export.onnx_fusions import fused
from medvfm_jax.types import MedvfmError

OPSET, IR_VERSION = 20, 10
LARGEST = 2**31 - 2**20  # bytes; protobuf holds less than 2 GiB
LARGEST_REPEATED = (
    4096  # numbers that are stored as often as they are repeated; more are repeated when it runs
)

Shape = tuple[Any, ...]  # of int and symbolic sizes


class CannotExport(MedvfmError):
    """A model, or an operation of it, that the format cannot hold."""


class Value(NamedTuple):
    """What an operation gives or takes.

    shape: as in JAX.  stored: the same, or 1 where the value is broadcast.  dtype: of numpy.
    array: of the shape ``stored``, of a constant; otherwise name: of the tensor in the graph.
    """

    shape: Shape
    stored: Shape
    dtype: np.dtype
    array: NDArray | None = None
    name: str = ""


def constant(array: Any) -> Value:
    """A number or array as a value."""
    array = np.asarray(array)
    return Value(array.shape, array.shape, array.dtype, array)


def is_static(shape: Shape) -> bool:
    """Whether no size is symbolic."""
    return all(isinstance(n, int | np.integer) for n in shape)


class Graph:
    """Nodes and constants of a graph that is being written.

    sizes: symbol -> (name of an input, its axis) where the size is found.
    """

    def __init__(self, sizes: dict[str, tuple[str, int]]):
        self._nodes: list[Any] = []
        self._arrays: dict[tuple[Any, ...], Any] = {}
        self._sizes, self._made = sizes, {}
        self._count = 0

    def node(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; gives the name of its output, or a list of names of several."""
        from onnx import helper

        names = [self._new(operator) for _ in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def stored(self, value: Value) -> str:
        """The name of a value as it is stored."""
        return value.name if value.array is None else self.array(value.array)

    def whole(self, value: Value) -> str:
        """The name of a value in its own shape."""
        if same(value.shape, value.stored):
            return self.stored(value)
        small = value.array is not None and is_static(value.shape) and prod(value.shape) <= LARGEST_REPEATED
        if small:
            return self.array(np.broadcast_to(value.array, value.shape))
        return self.node("Expand", [self.stored(value), self.shape(value.shape)])

    def array(self, array: NDArray) -> str:
        """The name of a constant; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.ascontiguousarray(array).reshape(
            np.shape(array)
        )  # the former makes a scalar an array of one
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._arrays:
            self._arrays[key] = numpy_helper.from_array(array, self._new("constant"))
        return self._arrays[key].name

    def integers(self, numbers: Sequence[int]) -> str:
        """The name of a constant of 64-bit integers, as shapes and axes are."""
        return self.array(np.array([int(n) for n in numbers], np.int64))

    def shape(self, shape: Shape) -> str:
        """The name of a shape, which may be symbolic."""
        if is_static(shape):
            return self.integers(shape)
        parts = [self.integers([n]) if is_static((n,)) else self._size(n) for n in shape]
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """A value in another shape, of which one size at most may be symbolic."""
        shape = tuple(shape)
        if same(value.shape, shape):
            return value
        if value.array is not None and is_static(value.shape):
            return constant(np.broadcast_to(value.array, value.shape).reshape(shape))
        free = [i for i, n in enumerate(shape) if not is_static((n,))]
        target = self.shape(shape)
        if len(free) <= 1:
            target = self.integers([-1 if i in free else n for i, n in enumerate(shape)])
        name = self.node("Reshape", [self.whole(value), target])
        return Value(shape, shape, value.dtype, None, name)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """A value with its axes in another order."""
        order = [int(axis) for axis in order]
        if order == list(range(len(value.shape))):
            return value
        shape, stored = (tuple(sizes[axis] for axis in order) for sizes in (value.shape, value.stored))
        if value.array is not None:
            return Value(shape, stored, value.dtype, value.array.transpose(order))
        return Value(
            shape, stored, value.dtype, None, self.node("Transpose", [self.stored(value)], perm=order)
        )

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], results: Sequence[Value]) -> bytes:
        """The whole model as bytes.

        inputs, outputs: (name, shape, dtype).  results: values of the outputs.  Raises CannotExport above 2 GiB.
        """
        from onnx import checker, helper

        for (name, *_), value in zip(outputs, results, strict=True):
            self._nodes.append(helper.make_node("Identity", [self.whole(value)], [name], name=f"give {name}"))
        size = sum(tensor.ByteSize() for tensor in self._arrays.values())
        if size > LARGEST:
            raise CannotExport(
                f"ONNX holds less than 2 GiB in a file and this model has {size / 2**30:.1f} GiB; use --to stablehlo."
            )
        fewer = fused(self._nodes, list(self._arrays.values()), [name for name, *_ in outputs])
        graph = helper.make_graph(
            fewer.nodes,
            "medvfm",
            [_info(*given) for given in inputs],
            [_info(*given) for given in outputs],
            list(fewer.constants.values()),
        )
        model = helper.make_model(
            graph,
            producer_name="medvfm",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        checker.check_model(model)
        return model.SerializeToString()

    def _size(self, size: Any) -> str:
        """The name of one symbolic size, as an array of one: a symbol, or a multiple of one."""
        times, symbol = re.fullmatch(r"(?:(\d+)\*)?(\w+)", str(size)).groups()
        if symbol not in self._sizes:
            raise CannotExport(f"A size of the model is {size}, which no input says; export a fixed batch.")
        if str(size) not in self._made:
            source, axis = self._sizes[symbol]
            found = self.node("Shape", [source], start=axis, end=axis + 1)
            self._made[str(size)] = self.node("Mul", [found, self.integers([times])]) if times else found
        return self._made[str(size)]

    def _new(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count}"


def same(one: Shape, other: Shape) -> bool:
    """Whether two shapes are equal."""
    return len(one) == len(other) and all(str(n) == str(m) for n, m in zip(one, other))


def _info(name: str, shape: Shape, dtype: Any) -> Any:
    from onnx import helper

    sizes = [int(n) if is_static((n,)) else str(n) for n in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sizes)
