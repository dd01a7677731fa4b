"""JAX's primitives in operators of ONNX (opset 20), one function for each that is not a plain name.

References:
    https://onnx.ai/onnx/operators/ and https://docs.jax.dev/en/latest/jax.lax.html
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from jax.lax import RoundingMethod

from medvfm_jax.export.onnx_graph import CannotExport, Graph, Shape, Value, constant, is_static, same

Emit = Callable[[Graph, Any, list[Value]], list[Value]]

# Of arrays that broadcast: the operator of the same meaning.
_PLAIN = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul",
    "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt",
    "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
_COMPARISONS = ("eq", "ge", "gt", "le", "lt", "ne")
_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


def emit(graph: Graph, equation: Any, given: list[Value]) -> list[Value]:
    """Add what one equation computes; of constants it is computed now.  Raises CannotExport for unknown primitives."""
    name = equation.primitive.name
    shapes = [variable.aval.shape for variable in equation.outvars]
    if name in ("broadcast_in_dim", "squeeze", "expand_dims", "reshape", "transpose"):
        return [_OWN[name](graph, equation, given)]
    if all(value.array is not None and is_static(value.shape) for value in given) and all(
        map(is_static, shapes)
    ):
        return _computed(equation, given)
    if name in _PLAIN or name in _BUILT:
        return [_elementwise(graph, equation, given)]
    if name in _REDUCTIONS:
        return [_reduced(graph, equation, given[0])]
    if name in _OWN:
        found = _OWN[name](graph, equation, given)
        return found if isinstance(found, list) else [found]
    raise CannotExport(
        f"ONNX export knows no operator for '{name}', which this model has; use --to stablehlo."
    )


def _computed(equation: Any, given: list[Value]) -> list[Value]:
    """What constants give; elementwise operations stay as small as their operands are stored."""
    primitive, name = equation.primitive, equation.primitive.name
    if name in _PLAIN or name in _BUILT:
        shape = equation.outvars[0].aval.shape
        stored = np.broadcast_shapes(*(value.stored for value in given))
        arrays = [np.broadcast_to(value.array, stored) for value in given]
        found = np.asarray(primitive.bind(*arrays, **equation.params))
        return [Value(shape, found.shape, found.dtype, found)]
    arrays = [np.broadcast_to(value.array, value.shape) for value in given]
    found = primitive.bind(*arrays, **equation.params)
    return [constant(array) for array in (found if primitive.multiple_results else [found])]


def _value(equation: Any, name: str, stored: Shape | None = None) -> Value:
    """The first output of an equation as a tensor of the graph."""
    aval = equation.outvars[0].aval
    return Value(tuple(aval.shape), tuple(aval.shape if stored is None else stored), aval.dtype, None, name)


def _elementwise(graph: Graph, equation: Any, given: list[Value]) -> Value:
    name = equation.primitive.name
    rank = len(equation.outvars[0].aval.shape)
    stored = tuple(
        next((v.stored[axis] for v in given if v.stored and not same((v.stored[axis],), (1,))), 1)
        for axis in range(rank)
    )
    names = [graph.stored(value) for value in given]
    if name in _BUILT:
        return _value(equation, _BUILT[name](graph, equation, names), stored)
    return _value(equation, graph.node(_PLAIN[name], names), stored)


def _scalar(graph: Graph, equation: Any, number: float) -> str:
    return graph.array(np.asarray(number, equation.invars[0].aval.dtype))


def _integer_pow(graph: Graph, equation: Any, names: list[str]) -> str:
    power = equation.params["y"]
    if power == 2:
        return graph.node("Mul", [names[0], names[0]])
    return graph.node("Pow", [names[0], _scalar(graph, equation, power)])


def _rounded(graph: Graph, equation: Any, names: list[str]) -> str:
    """To the nearest whole number; of two alike the even one, which is ONNX's only way, or the one away from 0."""
    if equation.params["rounding_method"] == RoundingMethod.TO_NEAREST_EVEN:
        return graph.node("Round", names)
    up = graph.node("Floor", [graph.node("Add", [graph.node("Abs", names), _scalar(graph, equation, 0.5)])])
    return graph.node("Mul", [graph.node("Sign", names), up])


def _cast(graph: Graph, equation: Any, names: list[str]) -> str:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return graph.node("Cast", names, to=kind)


def _select(graph: Graph, equation: Any, names: list[str]) -> str:
    if len(names) != 3 or equation.invars[0].aval.dtype != bool:
        raise CannotExport("ONNX export knows a choice between two arrays only; use --to stablehlo.")
    return graph.node("Where", [names[0], names[2], names[1]])


# Elementwise operations that are more than one name.
_BUILT: dict[str, Callable[[Graph, Any, list[str]], str]] = {
    "clamp": lambda g, e, n: g.node("Min", [g.node("Max", [n[1], n[0]]), n[2]]),
    "convert_element_type": _cast,
    "cosh": lambda g, e, n: g.node("Cosh", n),
    "erfc": lambda g, e, n: g.node("Sub", [_scalar(g, e, 1), g.node("Erf", n)]),
    "expm1": lambda g, e, n: g.node("Sub", [g.node("Exp", n), _scalar(g, e, 1)]),
    "integer_pow": _integer_pow,
    "log1p": lambda g, e, n: g.node("Log", [g.node("Add", [n[0], _scalar(g, e, 1)])]),
    "ne": lambda g, e, n: g.node("Not", [g.node("Equal", n)]),
    "rem": lambda g, e, n: g.node("Mod", n, fmod=1),
    "round": _rounded,
    "rsqrt": lambda g, e, n: g.node("Reciprocal", [g.node("Sqrt", n)]),
    "select_n": _select,
    "square": lambda g, e, n: g.node("Mul", [n[0], n[0]]),
}


def _broadcast(graph: Graph, equation: Any, given: list[Value]) -> Value:
    """Axes of one where the value is new; the rest is left to those who take it."""
    value, places = given[0], equation.params["broadcast_dimensions"]
    shape: Shape = tuple(equation.outvars[0].aval.shape)
    stored: list[Any] = [1] * len(shape)
    for axis, place in enumerate(places):
        stored[place] = value.stored[axis]
    return _with_ones(graph, value, shape, tuple(stored))


def _with_ones(graph: Graph, value: Value, shape: Shape, stored: Shape) -> Value:
    """The same numbers, stored with other axes of one."""
    if same(stored, value.stored):
        return value._replace(shape=tuple(shape), stored=stored)
    as_stored = value._replace(shape=value.stored)
    return graph.reshape(as_stored, stored)._replace(shape=tuple(shape), stored=stored)


def _squeezed(graph: Graph, equation: Any, given: list[Value]) -> Value:
    left = [axis for axis in range(len(given[0].shape)) if axis not in equation.params["dimensions"]]
    return _with_ones(
        graph, given[0], equation.outvars[0].aval.shape, tuple(given[0].stored[axis] for axis in left)
    )


def _expanded(graph: Graph, equation: Any, given: list[Value]) -> Value:
    stored = iter(given[0].stored)
    shape = equation.outvars[0].aval.shape
    added = equation.params["dimensions"]
    return _with_ones(
        graph, given[0], shape, tuple(1 if axis in added else next(stored) for axis in range(len(shape)))
    )


def _reduced(graph: Graph, equation: Any, value: Value) -> Value:
    axes = [int(axis) for axis in equation.params["axes"]]
    names = [graph.whole(value), graph.integers(axes)]
    return _value(equation, graph.node(_REDUCTIONS[equation.primitive.name], names, keepdims=0))


def _largest(operator: str) -> Emit:
    def emitted(graph: Graph, equation: Any, given: list[Value]) -> Any:
        (axis,) = equation.params["axes"]
        found = graph.node(operator, [graph.whole(given[0])], axis=int(axis), keepdims=0)
        return _value(equation, _to(graph, found, equation.outvars[0].aval.dtype))

    return emitted


def _to(graph: Graph, name: str, dtype: Any) -> str:
    from onnx import helper

    return graph.node("Cast", [name], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _concatenated(graph: Graph, equation: Any, given: list[Value]) -> Any:
    names = [graph.whole(value) for value in given]
    return _value(equation, graph.node("Concat", names, axis=int(equation.params["dimension"])))


def _stacked(graph: Graph, equation: Any, given: list[Value]) -> Any:
    axis = int(equation.params["axis"])
    parts = [
        graph.reshape(value, (*value.shape[:axis], 1, *value.shape[axis:]))  # one size more, of one
        for value in given
    ]
    return _value(equation, graph.node("Concat", [graph.whole(part) for part in parts], axis=axis))


def _cut(
    graph: Graph, value: Value, starts: Sequence[int], ends: Sequence[Any], steps: Sequence[int] | None
) -> str:
    """Part of a value; axes that stay whole are left out, so that they may be symbolic."""
    steps = steps or [1] * len(starts)
    axes = [
        axis
        for axis, size in enumerate(value.shape)
        if not (starts[axis] == 0 and same((ends[axis],), (size,)) and steps[axis] == 1)
    ]
    if not axes:
        return graph.whole(value)
    if not is_static([ends[axis] for axis in axes]):
        raise CannotExport("A symbolic axis of this model is cut; export a fixed batch.")
    numbers = [[list_[axis] for axis in axes] for list_ in (starts, ends)]
    return graph.node(
        "Slice",
        [
            graph.whole(value),
            graph.integers(numbers[0]),
            graph.integers(numbers[1]),
            graph.integers(axes),
            graph.integers([steps[axis] for axis in axes]),
        ],
    )


def _sliced(graph: Graph, equation: Any, given: list[Value]) -> Any:
    params = equation.params
    cut = _cut(graph, given[0], params["start_indices"], params["limit_indices"], params["strides"])
    return _value(equation, cut)


def _split(graph: Graph, equation: Any, given: list[Value]) -> Any:
    axis, sizes = int(equation.params["axis"]), equation.params["sizes"]
    names = graph.node("Split", [graph.whole(given[0]), graph.integers(sizes)], outputs=len(sizes), axis=axis)
    names = [names] if isinstance(names, str) else names
    return [
        Value(tuple(v.aval.shape), tuple(v.aval.shape), v.aval.dtype, None, name)
        for v, name in zip(equation.outvars, names)
    ]


def _reversed(graph: Graph, equation: Any, given: list[Value]) -> Any:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    ends = [np.iinfo(np.int64).min] * len(axes)
    parts = [graph.integers(numbers) for numbers in ([-1] * len(axes), ends, axes, [-1] * len(axes))]
    return _value(equation, graph.node("Slice", [graph.whole(given[0]), *parts]))


def _padded(graph: Graph, equation: Any, given: list[Value]) -> Any:
    value, filling = given
    config = equation.params["padding_config"]
    if any(interior for _, _, interior in config):
        raise CannotExport("ONNX export knows no padding between elements; use --to stablehlo.")
    name = graph.whole(value)
    amounts = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    if any(low or high for low, high in amounts):
        numbers = graph.integers([low for low, _ in amounts] + [high for _, high in amounts])
        name = graph.node("Pad", [name, numbers, graph.whole(filling)])
    if any(min(low, high) < 0 for low, high, _ in config):
        sizes = [size + low + high for size, (low, high) in zip(value.shape, amounts)]
        starts = [max(-low, 0) for low, _, _ in config]
        ends = [size - max(-high, 0) for size, (_, high, _) in zip(sizes, config)]
        name = _cut(graph, Value(tuple(sizes), tuple(sizes), value.dtype, None, name), starts, ends, None)
    return _value(equation, name)


def _iota(graph: Graph, equation: Any, given: list[Value]) -> Any:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if not is_static((shape[axis],)):
        raise CannotExport("A symbolic axis of this model is numbered; export a fixed batch.")
    stored = [shape[axis] if a == axis else 1 for a in range(len(shape))]
    numbers = np.arange(shape[axis]).astype(equation.params["dtype"]).reshape(stored)
    return Value(tuple(shape), tuple(stored), numbers.dtype, numbers)


def _product(graph: Graph, equation: Any, given: list[Value]) -> Any:
    """Batch axes first, then the free ones, then those that are summed over: a product of matrices."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = given
    left_free = [a for a in range(len(left.shape)) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(len(right.shape)) if a not in (*right_sum, *right_batch)]
    batch = tuple(left.shape[a] for a in left_batch)
    rows, columns = ([v.shape[a] for a in free] for v, free in ((left, left_free), (right, right_free)))
    inner = prod(left.shape[a] for a in left_sum)
    left = graph.transpose(left, [*left_batch, *left_free, *left_sum])
    right = graph.transpose(right, [*right_batch, *right_sum, *right_free])
    if batch or not left_free or len(left_sum) != 1:  # else the free axes of the left may stay as they are
        left = graph.reshape(left, (*batch, prod(rows), inner))
    right = graph.reshape(right, (*batch, inner, prod(columns)))
    shape = (*left.shape[:-1], right.shape[-1])
    name = graph.node("MatMul", [graph.whole(left), graph.whole(right)])
    found = Value(shape, shape, equation.outvars[0].aval.dtype, None, name)
    return graph.reshape(found, equation.outvars[0].aval.shape)


def _convolved(graph: Graph, equation: Any, given: list[Value]) -> Any:
    params = equation.params
    image, kernel = given
    numbers = params["dimension_numbers"]
    rank = len(image.shape) - 2
    if params["batch_group_count"] != 1:
        raise CannotExport("ONNX has no convolution with groups of images; use --to stablehlo.")
    image = graph.transpose(image, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    for axis, dilation in enumerate(params["lhs_dilation"], start=2):
        image = _with_gaps(graph, image, axis, dilation)
    padding = params["padding"]
    name = graph.whole(image)
    if any(min(sides) < 0 for sides in padding):
        starts = [0, 0, *(max(-low, 0) for low, _ in padding)]
        ends = [*image.shape[:2], *(n - max(-high, 0) for n, (_, high) in zip(image.shape[2:], padding))]
        name = _cut(graph, image, starts, ends, None)
    found = graph.node(
        "Conv",
        [name, graph.whole(kernel)],
        group=int(params["feature_group_count"]),
        strides=[int(n) for n in params["window_strides"]],
        dilations=[int(n) for n in params["rhs_dilation"]],
        pads=[max(int(low), 0) for low, _ in padding] + [max(int(high), 0) for _, high in padding],
    )
    aval = equation.outvars[0].aval
    shape = tuple(aval.shape[axis] for axis in numbers.out_spec)
    value = Value(shape, shape, aval.dtype, None, found)
    back = [numbers.out_spec.index(axis) for axis in range(rank + 2)]
    return graph.transpose(value, back)


def _with_gaps(graph: Graph, image: Value, axis: int, dilation: int) -> Value:
    """Zeros between the pixels along an axis, which a transposed convolution is made of."""
    if dilation == 1:
        return image
    size, shape = image.shape[axis], image.shape
    apart = graph.reshape(image, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    low = [0] * len(apart.shape)
    high = [dilation - 1 if a == axis + 1 else 0 for a in range(len(apart.shape))]
    zero = graph.array(np.zeros((), image.dtype))
    name = graph.node("Pad", [graph.whole(apart), graph.integers([*low, *high]), zero])
    wide = (*shape[: axis + 1], dilation, *shape[axis + 1 :])
    long = (*shape[:axis], size * dilation, *shape[axis + 1 :])
    value = graph.reshape(Value(wide, wide, image.dtype, None, name), long)
    ends = [*long]
    ends[axis] = size * dilation - (dilation - 1)
    cut = _cut(graph, value, [0] * len(long), ends, None)
    return Value(tuple(ends), tuple(ends), image.dtype, None, cut)


def _pooled(graph: Graph, equation: Any, given: list[Value]) -> Any:
    """The largest of each window, of maps with channels last."""
    params = equation.params
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    plain = all(n == 1 for n in (*params["base_dilation"], *params["window_dilation"]))
    if not plain or window[0] != 1 or window[-1] != 1:
        raise CannotExport("ONNX export knows pooling along the axes of space only; use --to stablehlo.")
    rank = len(window) - 2
    image = graph.transpose(given[0], [0, rank + 1, *range(1, rank + 1)])
    found = graph.node(
        "MaxPool",
        [graph.whole(image)],
        kernel_shape=[int(n) for n in window[1:-1]],
        strides=[int(n) for n in strides[1:-1]],
        pads=[int(low) for low, _ in padding[1:-1]] + [int(high) for _, high in padding[1:-1]],
    )
    shape = equation.outvars[0].aval.shape
    turned = (shape[0], shape[-1], *shape[1:-1])
    return graph.transpose(Value(turned, turned, given[0].dtype, None, found), [0, *range(2, rank + 2), 1])


def _gathered(graph: Graph, equation: Any, given: list[Value]) -> Any:
    """A part at a fixed place, or entries along one axis; other gathers have no equal."""
    value, indices = given
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.outvars[0].aval.shape
    if numbers.operand_batching_dims:
        raise CannotExport("ONNX export knows no gather with batches; use --to stablehlo.")
    if indices.array is not None and len(indices.shape) == 1:
        starts, ends = [0] * len(sizes), list(sizes)
        place = np.broadcast_to(indices.array, indices.shape)
        for number, axis in zip(place, numbers.start_index_map, strict=True):
            starts[axis] = max(0, min(int(number), value.shape[axis] - sizes[axis]))
            ends[axis] = starts[axis] + sizes[axis]
        cut = _cut(graph, value, starts, ends, None)
        return graph.reshape(Value(tuple(sizes), tuple(sizes), value.dtype, None, cut), shape)
    (axis,) = numbers.start_index_map if len(numbers.start_index_map) == 1 else (None,)
    whole = axis is not None and all(
        same((size,), (1 if a == axis else n,)) for a, (size, n) in enumerate(zip(sizes, value.shape))
    )
    if not whole or tuple(numbers.collapsed_slice_dims) != (axis,):
        raise CannotExport("ONNX export knows gathers along one axis only; use --to stablehlo.")
    count = len(indices.shape) - 1  # the last axis of indices is that of coordinates
    flat = graph.reshape(indices, indices.shape[:-1])
    least, most = (graph.array(np.asarray(n, indices.dtype)) for n in (0, value.shape[axis] - 1))
    inside = graph.node("Min", [graph.node("Max", [graph.whole(flat), least]), most])
    found = graph.node("Gather", [graph.whole(value), inside], axis=int(axis))
    kept = [a for a in range(len(value.shape)) if a != axis]
    given_by = [("kept", a) for a in kept if a < axis]
    given_by += [("index", a) for a in range(count)] + [("kept", a) for a in kept if a > axis]
    left, index = iter(kept), iter(range(count))
    wanted = [
        ("kept", next(left)) if place in numbers.offset_dims else ("index", next(index))
        for place in range(len(shape))
    ]
    order = [given_by.index(what) for what in wanted]
    unordered: list[Any] = [None] * len(shape)
    for place, source in enumerate(order):
        unordered[source] = shape[place]
    return graph.transpose(Value(tuple(unordered), tuple(unordered), value.dtype, None, found), order)


def _summed_up(graph: Graph, equation: Any, given: list[Value]) -> Any:
    axis = graph.array(np.asarray(equation.params["axis"], np.int64))
    backwards = int(equation.params["reverse"])
    return _value(equation, graph.node("CumSum", [graph.whole(given[0]), axis], reverse=backwards))


def _tiled(graph: Graph, equation: Any, given: list[Value]) -> Any:
    """Repeated along axes; how often may be symbolic."""
    names = [graph.whole(given[0]), graph.shape(equation.params["reps"])]
    return _value(equation, graph.node("Tile", names))


_OWN: dict[str, Callable[[Graph, Any, list[Value]], Any]] = {
    "argmax": _largest("ArgMax"),
    "argmin": _largest("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolved,
    "cumsum": _summed_up,
    "dot_general": _product,
    "expand_dims": _expanded,
    "gather": _gathered,
    "iota": _iota,
    "pad": _padded,
    "reduce_window_max": _pooled,
    "reshape": lambda graph, equation, given: graph.reshape(given[0], equation.outvars[0].aval.shape),
    "rev": _reversed,
    "slice": _sliced,
    "split": _split,
    "squeeze": _squeezed,
    "stack": _stacked,
    "tile": _tiled,
    "transpose": lambda graph, equation, given: graph.transpose(given[0], equation.params["permutation"]),
}
