"""Look into traced programs."""

from collections.abc import Iterator

import jax


def equations(jaxpr: jax.extend.core.Jaxpr) -> Iterator:
    """Yield every equation, also those inside scans, remats and calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(sub, "jaxpr"):
                yield from equations(sub.jaxpr)
            elif hasattr(sub, "eqns"):
                yield from equations(sub)


def shapes_in(function, *args) -> set[tuple[int, ...]]:
    """Return the shapes of all intermediate results of ``function(*args)``."""
    return {v.aval.shape for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr) for v in eqn.outvars}


def products_with(shape: tuple[int, ...], function, *args) -> list:
    """Return the dot_general equations that have an operand of ``shape`` (a kernel)."""
    found = []
    for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if eqn.primitive.name == "dot_general" and shape in [v.aval.shape for v in eqn.invars]:
            found.append(eqn)
    return found
