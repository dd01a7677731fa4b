"""Floating-point operations of matrix products and convolutions, counted in a traced function.

Utilisation compares with what the mathematics needs: one forward pass and the products of the backward pass, without
what is computed a second time to save memory (model FLOPs, Chowdhery et al. 2022, PaLM, appendix B).  In the
backward pass exactly the products with something that depends on the loss's cotangent are needed; the rest of it is
forward work repeated.

A kernel (``pallas_call``) executes the products of its body as often as its grid has steps.  What of that is done a
second time cannot be seen from outside, so model FLOPs are to be counted in a form of the model without kernels.
Kernels are also counted as matrix units see them: contracted and output columns filled up to whole units of 128.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_UNIT = 128  # columns and rows of a TPU's matrix unit; v6e's are 256 wide


@dataclass(frozen=True)
class Flops:
    """model: forward and backward, nothing twice.  executed: with what is recomputed in the backward pass.

    kernels: what matrix units do in kernels, filling included.
    """

    model: int
    executed: int
    kernels: int = 0


def training_flops(loss: Callable[..., tuple[Any, Any]], params: Any, delta: Any, *rest: Any) -> Flops:
    """Of ``value_and_grad(loss, argnums=1, has_aux=True)(params, delta, *rest)``; arguments may be shapes."""

    def backward(cotangent: Any, params: Any, delta: Any, *rest: Any) -> Any:
        value, pull, aux = jax.vjp(lambda delta: loss(params, delta, *rest), delta, has_aux=True)
        return value, aux, pull(cotangent)

    forward = jax.make_jaxpr(loss)(params, delta, *rest)
    one = jax.eval_shape(loss, params, delta, *rest)[0]
    both = jax.make_jaxpr(backward)(one, params, delta, *rest)
    needed_forward, _, _ = _count(forward.jaxpr, [False] * len(forward.jaxpr.invars))
    inputs = [True] + [False] * (len(both.jaxpr.invars) - 1)
    executed, of_cotangents, _ = _count(both.jaxpr, inputs)
    kernels, _, _ = _count(both.jaxpr, inputs, _outside)
    return Flops(needed_forward + of_cotangents, executed, kernels)


def forward_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Of one call; arguments may be shapes."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count(jaxpr, [False] * len(jaxpr.invars))[0]


def _count(
    jaxpr: Jaxpr, marked: Sequence[bool], product: Callable[[Any], int] | None = None
) -> tuple[int, int, list[bool]]:
    """-> (all, those with a marked operand, which outputs are marked), marks spreading from inputs to outputs.

    product: FLOPs of one product or convolution.
    """
    product = product or _exact
    marks = dict(zip(jaxpr.invars, marked, strict=True))
    total = of_marked = 0
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(v, Literal) and marks.get(v, False) for v in eqn.invars]
        everything, some, outputs = _of_equation(eqn, inputs, product)
        total += everything
        of_marked += some
        marks.update(zip(eqn.outvars, outputs, strict=True))
    return total, of_marked, [not isinstance(v, Literal) and marks.get(v, False) for v in jaxpr.outvars]


def _of_equation(eqn: Any, inputs: list[bool], product: Callable[[Any], int]) -> tuple[int, int, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    if name in ("dot_general", "conv_general_dilated"):
        flops = product(eqn)
        return flops, flops * any(inputs), [any(inputs)]
    if name == "pallas_call":
        body, steps = params["jaxpr"], math.prod(params["grid_mapping"].grid)
        inside = _exact if product is _exact else _filled
        flops = steps * _count(body, [False] * len(body.invars), inside)[0]
        return flops, flops * any(inputs), [any(inputs)] * len(eqn.outvars)
    if name == "scan":
        return _scan(params, inputs, product)
    if name == "cond":
        branches = [_count(b.jaxpr, inputs[1:], product) for b in params["branches"]]
        total, some, _ = max(branches, key=lambda b: b[0])
        return total, some, [any(b[2][i] for b in branches) for i in range(len(eqn.outvars))]
    bodies = [_open(value) for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    bodies = [
        body for body in bodies if len(body.invars) == len(inputs) and len(body.outvars) == len(eqn.outvars)
    ]
    if bodies:
        return _count(bodies[0], inputs, product)
    return 0, 0, [any(inputs)] * len(eqn.outvars)


def _scan(
    params: dict[str, Any], inputs: list[bool], product: Callable[[Any], int]
) -> tuple[int, int, list[bool]]:
    body, constants, carried = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
    marked = list(inputs)
    while True:
        total, some, outputs = _count(body, marked, product)
        carry = [
            a or b for a, b in zip(marked[constants : constants + carried], outputs[:carried], strict=True)
        ]
        if carry == marked[constants : constants + carried]:
            return params["length"] * total, params["length"] * some, outputs
        marked[constants : constants + carried] = carry


def _open(body: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return body.jaxpr if isinstance(body, ClosedJaxpr) else body


def _exact(eqn: Any) -> int:
    return (_dot if eqn.primitive.name == "dot_general" else _convolution)(eqn)


def _outside(eqn: Any) -> int:
    """Nothing: of what is counted with this, only the insides of kernels count."""
    return 0


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _filled(eqn: Any) -> int:
    """A kernel's product of two matrices, in units of 128 x 128 that stand still while rows of the left one pass."""
    ((contracted,), _), _ = eqn.params["dimension_numbers"]
    rows, columns = eqn.outvars[0].aval.shape
    return 2 * rows * _up(columns) * _up(eqn.invars[0].aval.shape[contracted])


def _up(columns: int) -> int:
    return -(-columns // _UNIT) * _UNIT


def _convolution(eqn: Any) -> int:
    """Every tap of every output; taps that a dilated input fills with zeros do not count, those of padding do."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * taps // math.prod(eqn.params["lhs_dilation"])
