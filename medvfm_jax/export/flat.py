"""A function as one flat list of primitives: nothing is called, scans are written out, what training reads is gone.

Converters to other formats know the arithmetic of JAX; calls, loops and rules of differentiation are resolved here for
all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Primitives that give back what they were given.
IDENTITIES = ("name", "stop_gradient", "optimization_barrier", "copy", "copy_p", "reduce_precision", "pvary")
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where the parameters of a call have what is called
LONGEST = 256  # steps of a scan that are written out


class CannotFlatten(Exception):
    """A loop whose number of steps is not known, or too large to be written out."""


def flat(function: Callable[..., Any], *inputs: Any) -> ClosedJaxpr:
    """Trace a function and resolve its calls.

    Args:
        function: of arrays, gives a tuple of arrays.
        *inputs: shapes (``jax.ShapeDtypeStruct``), which may be symbolic.

    Returns:
        A jaxpr without calls, scans and identities.

    Raises:
        CannotFlatten: a loop that cannot be written out.
    """
    closed = jax.make_jaxpr(function)(*inputs)
    return jax.make_jaxpr(lambda *given: _run(closed.jaxpr, closed.consts, given))(*inputs)


def _run(jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Bind every primitive again, those of what is called in the place of the call."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        found = _bind(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: Any, given: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in IDENTITIES:
        return given
    if name == "scan":
        return _written_out(params, given)
    if name == "cond" and len({str(branch) for branch in params["branches"]}) == 1:
        return _run(params["branches"][0].jaxpr, params["branches"][0].consts, given[1:])
    if name in ("while", "cond"):
        raise CannotFlatten(f"a '{name}' whose course depends on its data")
    inner = next((params[key] for key in _INNER if key in params), None)
    if inner is not None:
        closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
        return _run(closed.jaxpr, closed.consts, given)
    found = equation.primitive.bind(*given, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _written_out(params: dict[str, Any], given: list[Any]) -> list[Any]:
    """The steps of a scan, one after the other."""
    length, body = params["length"], params["jaxpr"]
    if length > LONGEST:
        raise CannotFlatten(f"a loop of {length} steps")
    kept, carried = params["num_consts"], params["num_carry"]
    constants, carry, sequences = given[:kept], given[kept : kept + carried], given[kept + carried :]
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)
    stacked: list[tuple[Any, ...]] = [()] * length
    for step in order:
        one = [lax.index_in_dim(sequence, step, keepdims=False) for sequence in sequences]
        found = _run(body.jaxpr, body.consts, [*constants, *carry, *one])
        carry, stacked[step] = found[:carried], tuple(found[carried:])
    joined = [
        lax.concatenate([lax.expand_dims(part, (0,)) for part in parts], 0)
        for parts in zip(*stacked, strict=True)
    ]
    return [*carry, *joined]
