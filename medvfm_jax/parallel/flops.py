"""Floating-point operations of matrix products and convolutions, counted in a traced function.

Utilisation compares with what the mathematics needs: one forward pass and the products of the backward pass, without
what is computed a second time to save memory (model FLOPs, Chowdhery et al. 2022, PaLM, appendix B).  In the
backward pass exactly the products with something that depends on the loss's cotangent are needed; the rest of it is
forward work repeated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclass(frozen=True)
class Flops:
    """model: forward and backward, nothing twice.  executed: with what is recomputed in the backward pass."""

    model: int
    executed: int


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
    return Flops(needed_forward + of_cotangents, executed)


def _count(jaxpr: Jaxpr, marked: Sequence[bool]) -> tuple[int, int, list[bool]]:
    """-> (all, those with a marked operand, which outputs are marked), marks spreading from inputs to outputs."""
    marks = dict(zip(jaxpr.invars, marked, strict=True))
    total = of_marked = 0
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(v, Literal) and marks.get(v, False) for v in eqn.invars]
        everything, some, outputs = _of_equation(eqn, inputs)
        total += everything
        of_marked += some
        marks.update(zip(eqn.outvars, outputs, strict=True))
    return total, of_marked, [not isinstance(v, Literal) and marks.get(v, False) for v in jaxpr.outvars]


def _of_equation(eqn: Any, inputs: list[bool]) -> tuple[int, int, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    if name in ("dot_general", "conv_general_dilated"):
        flops = (_dot if name == "dot_general" else _convolution)(eqn)
        return flops, flops * any(inputs), [any(inputs)]
    if name == "scan":
        return _scan(params, inputs)
    if name == "cond":
        branches = [_count(b.jaxpr, inputs[1:]) for b in params["branches"]]
        total, some, _ = max(branches, key=lambda b: b[0])
        return total, some, [any(b[2][i] for b in branches) for i in range(len(eqn.outvars))]
    bodies = [_open(value) for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    bodies = [
        body for body in bodies if len(body.invars) == len(inputs) and len(body.outvars) == len(eqn.outvars)
    ]
    if bodies:
        return _count(bodies[0], inputs)
    return 0, 0, [any(inputs)] * len(eqn.outvars)


def _scan(params: dict[str, Any], inputs: list[bool]) -> tuple[int, int, list[bool]]:
    body, constants, carried = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
    marked = list(inputs)
    while True:
        total, some, outputs = _count(body, marked)
        carry = [
            a or b for a, b in zip(marked[constants : constants + carried], outputs[:carried], strict=True)
        ]
        if carry == marked[constants : constants + carried]:
            return params["length"] * total, params["length"] * some, outputs
        marked[constants : constants + carried] = carry


def _open(body: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return body.jaxpr if isinstance(body, ClosedJaxpr) else body


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
    """Every tap of every output; taps that a dilated input fills with zeros do not count, those of padding do."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * taps // math.prod(eqn.params["lhs_dilation"])
