"""What of a round is a client's model: one shared delta, and the leaves that each client keeps."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var

from medvfm_jax.federated.core.personal_parts import join_personal
from medvfm_jax.federated.core.records import Algorithm, Server, Tree


class Models(NamedTuple):
    """The models of a round: shared, a whole delta; own, stacked (n, ...), None where nothing is own."""

    shared: Tree
    own: Tree


def client_models(
    algorithm: Algorithm, start: Tree, server: Server, states: Tree, chunk: int | None = None
) -> Models:
    """The models a round ends with, from the first delta, the server and the clients' stacked states.

    chunk: so many clients at once, and ``own`` in the host's memory, for states of more clients than a device holds;
    None: all at once, on the device.

    Own are the leaves of ``Algorithm.model`` that depend on the client's state.  A client that took no
    part has the first values there: what a client keeps is not shared.
    """
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), states)
    is_own = _of_client(algorithm, server, one)

    def own_of(state: Tree) -> Tree:
        return jax.tree.map(lambda own, x: x if own else None, is_own, algorithm.model(server, state))

    if not any(jax.tree.leaves(is_own)):
        own = jax.tree.map(lambda _: None, is_own)
    elif chunk is None:
        own = jax.vmap(own_of)(states)
    else:
        own = _in_chunks(jax.jit(jax.vmap(own_of)), states, chunk)
    return Models(join_personal(algorithm.model(server, None), start), own)


def _in_chunks(of_chunk: Callable[[Tree], Tree], states: Tree, chunk: int) -> Tree:
    """A function of stacked clients, chunk by chunk, as one tree of arrays in the host's memory."""
    n = jax.tree.leaves(states)[0].shape[0]
    parts = (of_chunk(jax.tree.map(lambda x, i=i: x[i : i + chunk], states)) for i in range(0, n, chunk))
    first = jax.device_get(next(parts))
    whole = jax.tree.map(lambda x: np.empty((n, *x.shape[1:]), x.dtype), first)
    start = 0
    for part in itertools.chain([first], parts):
        size = jax.tree.leaves(part)[0].shape[0]
        jax.tree.map(lambda x, new, i=start, k=size: x.__setitem__(slice(i, i + k), new), whole, part)
        start += size
    return whole


def model_of(models: Models, client: int | None) -> Tree:
    """The whole delta that a client uses, or with None a client that took no part."""
    if client is None:
        return models.shared
    own = jax.tree.map(lambda x: x[client], models.own)
    return join_personal(own, models.shared)


def keeps_a_part(algorithm: Algorithm, delta: Tree) -> bool:
    """Whether a client's model has leaves of its own."""
    return any(jax.tree.leaves(_of_client(algorithm, *first_shapes(algorithm, delta))))


def first_shapes(algorithm: Algorithm, delta: Tree) -> tuple[Server, Tree]:
    """Shapes of the server and of a client's state before the first round."""
    received, memory = jax.eval_shape(algorithm.init_server, delta)
    server = Server(received, jnp.int32(0), memory, jnp.float32(1))
    return server, jax.eval_shape(algorithm.init_client, delta, jnp.uint32(0))


def _of_client(algorithm: Algorithm, server: Server, state: Tree) -> Tree:
    """The model's delta with, for each leaf, whether it depends on the client's state; from shapes."""
    program, model = jax.make_jaxpr(algorithm.model, return_shape=True)(server, state)
    inputs = program.jaxpr.invars
    reached = set(inputs[len(inputs) - len(jax.tree.leaves(state)) :])
    for equation in program.jaxpr.eqns:  # its results depend on all it reads
        if any(isinstance(v, Var) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    own = [isinstance(v, Var) and v in reached for v in program.jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(model), own)
