"""What all nodes of a federation must agree on, and what follows from it: shapes of every message, one digest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, Var

from medvfm_jax.federated.codecs.compose import identity
from medvfm_jax.federated.codecs.wire import message_shapes
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Algorithm, Client, Codec, Report, Server, Shard, Tree
from medvfm_jax.federated.network.layouts import digest, layout
from medvfm_jax.federated.network.messages import VERSION
from medvfm_jax.federated.network.secure_messages import SecureShapes, secure_shapes
from medvfm_jax.federated.privacy.client_level import draws_private_noise
from medvfm_jax.federated.secure.secure_sum import SecureSum, check_summable

KEY_IMPLEMENTATION = "threefry2x32"  # named on both sides: a node may have another default


class Agreement(NamedTuple):
    """The common part of a federation; every node builds it from the same settings.

    Attributes:
        algorithm: what sites and server compute.
        delta: the first delta; the server's values count, a node needs its structure and, for personal parts, its
            values.
        example: one client's `Shard` for one round, arrays or shapes. Sites may have other numbers of steps and other
            batch sizes, as long as the update has the same shapes.
        codec: compresses the uploads; one without memory at the receiver.
        settings: what else must be equal on all nodes, such as learning rates and the fingerprint of the base
            weights.
        secure: secure aggregation of the updates, None for none; ``secure.clients`` is the number of sites.
    """

    algorithm: Algorithm
    delta: Tree
    example: Shard
    codec: Codec = identity()
    settings: Mapping[str, str | int | float | bool | None] = {}
    secure: SecureSum | None = None


class Download(NamedTuple):
    """What a site receives in a round: the leaves of the server that its work reads, by name, and its random key.

    key (2,) uint32: of this client and this round only.  The server's noise comes from another key, and a site whose
    work makes noise of its own does not use this one (`Contract.noisy`).
    """

    server: dict[str, Array]
    key: Array


class Upload(NamedTuple):
    """What a site sends in a round: a `Report` whose upload is the codec's message, without what else was measured."""

    message: Tree
    weight: Array
    loss: Array
    public: Tree


class Contract(NamedTuple):
    """Shapes of everything that is exchanged or stored, from ``contract(agreement)``; nothing is computed.

    noisy: whether a site's work makes noise that protects its patients.
    """

    server: Server
    client: Client
    report: Report
    download: Download
    upload: Upload
    federation: str  # digest of all that must agree
    noisy: bool
    secure: SecureShapes | None = None


def contract(agreement: Agreement) -> Contract:
    """Derive the shapes of all messages by abstract evaluation, and the digest that every message carries.

    Args:
        agreement: of all nodes.

    Returns:
        Shapes of all messages and of what is stored, and the digest; no array is computed.

    Raises:
        BadFederation: a codec whose receiver has to remember every sender, two parts of the model with one path, or
            an algorithm or codec that secure aggregation cannot sum.
        BadPrivacy: noise of the sites, and an algorithm that uploads whole models.
    """
    algorithm = agreement.algorithm
    server, state, *_ = work = _work(agreement)
    report = jax.eval_shape(algorithm.client_update, *work)[1]._replace(measured=())
    program = _program(algorithm, work)
    residual = jax.eval_shape(agreement.codec.init, report.upload)
    client = Client(state, residual, jax.ShapeDtypeStruct((), jnp.uint32))
    download = Download(_leaves_read(program, server), jax.ShapeDtypeStruct((2,), jnp.uint32))
    message = message_shapes(agreement.codec, report.upload)
    upload = Upload(message, report.weight, report.loss, report.public)
    agreed = [VERSION, layout(download), layout(upload), layout(client), dict(agreement.settings)]
    noisy, secure = draws_private_noise(program), None
    if agreement.secure is not None:
        check_summable(agreement.secure, algorithm, agreement.codec, report)
        secure = secure_shapes(agreement.secure, download, report.upload, () if noisy else report.loss)
        agreed.append(dict(agreement.secure.settings))
    return Contract(server, client, report, download, upload, digest(agreed), noisy, secure)


def _work(agreement: Agreement) -> tuple:
    """Shapes of what ``client_update`` takes."""
    server = jax.eval_shape(lambda delta: first_server(agreement.algorithm, delta), agreement.delta)
    state = jax.eval_shape(agreement.algorithm.init_client, agreement.delta, jnp.uint32(0))
    shard = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), agreement.example)
    mask = jax.ShapeDtypeStruct(jax.tree.leaves(shard.batches)[0].shape[:1], bool)
    return server, state, shard, mask, jax.eval_shape(jax.random.key, 0)


def first_server(algorithm: Algorithm, delta: Tree, clip: float = np.inf) -> Server:
    """The server before round 0, as ``make_round`` begins."""
    received, state = algorithm.init_server(delta)
    return Server(received, jnp.int32(0), state, jnp.asarray(clip, jnp.result_type(float)))


def first_client(agreement: Agreement, shapes: Contract, client: int) -> Client:
    """A client before its first round, as ``make_round`` begins; client: its row."""
    number = jnp.uint32(client)
    state = agreement.algorithm.init_client(agreement.delta, number)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.report.upload)
    return Client(state, agreement.codec.init(zeros), number)


def named_leaves(server: Server) -> dict[str, Any]:
    """Server -> its leaves by name, as in `Download`; raises BadFederation if two have one name."""
    leaves = jax.tree_util.tree_leaves_with_path(server)
    named = {leaf_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise BadFederation("Two parts of the model have the same path once it is joined by '/'; rename one.")
    return named


def received_server(shapes: Contract, leaves: Mapping[str, Array]) -> Server:
    """The server as a site sees it: leaves that were not sent are zeros, which its work does not read."""
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes.server)
    names = [leaf_name(path) for path, _ in paths]
    filled = [
        leaves[name] if name in leaves else jnp.zeros(shape.shape, shape.dtype)
        for name, (_, shape) in zip(names, paths, strict=True)
    ]
    return jax.tree.unflatten(structure, filled)


def _program(algorithm: Algorithm, work: tuple) -> Jaxpr:
    """A client's work as a traced program; its first inputs are the leaves of the server."""
    server, *rest = work
    leaves, structure = jax.tree.flatten(server)

    def flat(leaves: list, *rest: Any) -> Any:
        return algorithm.client_update(jax.tree.unflatten(structure, leaves), *rest)

    return jax.make_jaxpr(flat)(leaves, *rest).jaxpr


def _leaves_read(program: Jaxpr, server: Server) -> dict[str, Any]:
    """Leaves of the server on which the result of a client's work depends: moments of its optimizer are not sent."""
    named = named_leaves(server)
    return {name: named[name] for name, read in zip(named, _inputs_needed(program)) if read}


def _inputs_needed(jaxpr: Jaxpr) -> list[bool]:
    """Which inputs reach an output; an equation counts as reading all its inputs."""
    needed = {v for v in jaxpr.outvars if isinstance(v, Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(v for v in equation.invars if isinstance(v, Var))
    return [v in needed for v in jaxpr.invars]
