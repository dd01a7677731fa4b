"""One federated round as a pure, jittable function, independent of the model.

Client states and data are stacked on a leading client axis.  All randomness of client i in round r comes from
``fold_in(fold_in(key, r), id of i)``, so no result depends on the backend, on chunking or on the order of clients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from medvfm_jax.federated.codecs.compose import identity
from medvfm_jax.federated.codecs.feedback import compressed_step
from medvfm_jax.federated.codecs.wire import bits, message_bits
from medvfm_jax.federated.core.backends import AXIS, client_map, place
from medvfm_jax.federated.core.records import (
    Algorithm,
    Backend,
    Client,
    Codec,
    Cohort,
    Federation,
    Metrics,
    Privacy,
    Report,
    Server,
    Shard,
    Tree,
)
from medvfm_jax.federated.core.tree_math import all_finite, select, zeros_like
from medvfm_jax.federated.privacy.client_level import (
    clip_vote,
    next_bound,
    noisy_mean,
)
from medvfm_jax.federated.privacy.clipping import clip_by_norm
from medvfm_jax.federated.rounds.refusals import check_privacy_and_downlink, check_secure, check_split
from medvfm_jax.federated.secure.secure_sum import (
    SecureSum,
    check_summable,
    least_answers,
    open_sum,
    secure_cohort,
    send,
)

# Purposes of the server's random numbers; no client has these ids.
_NOISE, _BOUND, _SERVER, _DOWN, _MASK, _ROTATION = (np.uint32(2**32 - 1 - i) for i in range(6))


class _Sums(NamedTuple):
    """One client's terms of the sums over the cohort; all zero if it does not count."""

    upload: Tree  # weighted, or masked integers; () when the algorithm wants a stack
    public: Tree  # weighted
    weight: Array
    norm: Array
    loss: Array
    measured: Tree
    vote: Array  # see `clip_vote`
    one: Array


class _Each(NamedTuple):
    """What is kept of every client."""

    client: Client
    loss: Array
    weight: Array
    answered: Array  # with secure aggregation: whether its masked integers are in the sum
    excluded: Array
    upload: Tree  # () unless the algorithm wants a stack or a measurement
    public: Tree


def make_round(
    algorithm: Algorithm,
    codec: Codec | None = None,
    privacy: Privacy | None = None,
    backend: Backend = "vmap",
    mesh: Mesh | None = None,
    chunk: int | None = None,
    population: int | None = None,
    down: Codec | None = None,
    secure: SecureSum | None = None,
) -> Federation:
    """Build the pure functions of a federated run.

    ``round`` takes (server, clients, data, participation, steps, key, dropped=None, measured=True). participation
    (n,) bool: who was chosen. steps (n, steps) bool or (n,) int: which local steps a client makes. dropped (n,) bool:
    who vanished in mid-round; to the server and to its own state such a client was absent. measured (static): without
    it ``Algorithm.measure`` is left out, and uploads that are only summed are not kept.

    A chosen client without a single step, or whose upload, loss or new state is not finite, does not count; the
    latter is reported in ``Metrics.excluded``. Rows that are absent cost nothing with the backend "loop"; elsewhere
    pass only the rows of those taking part.

    Args:
        algorithm: gradient in, model out.
        codec: of the clients' uploads; None: uncompressed.
        privacy: central client-level privacy; None: none.
        backend: how clients are mapped: "vmap", "loop" or "shard_map".
        mesh: over whose client axis "shard_map" shards.
        chunk: clients side by side at most.
        population: N, where only a cohort's rows are passed in.
        down: compresses the server's step as ``codec`` does a client's, for algorithms that broadcast
            ``server.delta``; its message goes to every client of the population, taking part or not, so that all hold
            the same delta.
        secure: secure aggregation: of the uploads only the sum of masked integers is used, see ``secure.secure_sum``.
            With fewer answers than its threshold the round has no sum and changes nothing, no client's state either;
            a client whose upload does not fit is excluded. Where the clients add the noise, one whose upload is not
            finite sends its noise alone, so that data do not decide who answers.

    Returns:
        ``init`` and ``round``.

    Raises:
        BadFederation: parts that do not fit together.
    """
    check_split(algorithm, codec, privacy, down, secure)
    codec = codec or identity()
    map_clients = client_map(backend, mesh, chunk)
    check_privacy_and_downlink(algorithm, privacy, down)
    check_secure(secure, privacy)
    own_noise = secure is not None and secure.noise != "none"

    def init(delta: Tree, data: Shard, ids: Array | None = None) -> tuple[Server, Client]:
        received, state = algorithm.init_server(delta)
        dtype = jnp.result_type(float)
        clip = jnp.asarray(privacy.clip if privacy else jnp.inf, dtype)
        sent = () if down is None else down.init(received)
        server = Server(received, jnp.int32(0), state, clip, sent)
        n = data.samples.shape[0]
        ids = jnp.arange(n, dtype=jnp.uint32) if ids is None else ids
        states = jax.vmap(partial(algorithm.init_client, delta))(ids)
        report = _report_shapes(algorithm, server, states, data)
        if secure is not None:
            check_summable(secure, algorithm, codec, report)
        residual = codec.init(report.upload)
        residual = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), residual)
        return place(server, mesh), place(Client(states, residual, ids), mesh, AXIS)

    def run_client(keep_uploads: bool, shared: tuple[Server, Array], one: tuple) -> tuple[_Sums, _Each]:
        (server, round_key, ids, joined), (client, shard, takes_part, step_mask, row) = shared, one
        key = jax.random.fold_in(round_key, client.id)
        moved, report, message = client_work(algorithm, codec, server, client, shard, step_mask, key)
        upload = codec.decode(message, report.upload)
        norm = optax.tree.norm(upload)
        # A lossy codec may hide a NaN, so what was there before it counts as well.
        healthy = all_finite((report, moved.state, norm, optax.tree.norm(report.upload)))
        takes_part = takes_part & step_mask.any()
        if secure is not None:
            plain = select(healthy, upload, zeros_like(upload)) if own_noise else upload
            rotation_key = jax.random.fold_in(round_key, _ROTATION)
            values, fits = secure.encode(
                jax.random.fold_in(key, _ROTATION), rotation_key, plain, report.weight
            )
            healthy &= fits
        counts = takes_part & healthy
        answers = takes_part if own_noise else counts
        weight, vote = report.weight, clip_vote(norm, server.clip)
        if privacy is not None:
            upload, weight = clip_by_norm(upload, server.clip), jnp.ones_like(weight)
        weighted = jax.tree.map(lambda u: u * weight.astype(u.dtype), upload)
        public = jax.tree.map(lambda p: p * weight, report.public)
        mean_upload = weighted if algorithm.reduction == "mean" else ()
        if secure is not None:
            mean_upload = send(secure, values, row, ids, joined, jax.random.fold_in(round_key, _MASK))
        ones = jnp.ones_like(norm)
        sums = _Sums(mean_upload, public, weight, norm, report.loss, report.measured, vote, ones)
        kept = (report.loss, weight, upload if keep_uploads else (), report.public)
        sums, kept = select(counts, (sums, kept), zeros_like((sums, kept)))
        if secure is not None:
            sums = sums._replace(upload=select(answers, mean_upload, zeros_like(mean_upload)))
        client = select(counts, moved, client)
        loss, weight, upload, public = kept
        return sums, _Each(client, loss, weight, answers, takes_part & ~healthy, upload, public)

    def round_(
        server: Server,
        clients: Client,
        data: Shard,
        participation: Array,
        steps: Array,
        key: Array,
        dropped: Array | None = None,
        measured: bool = True,
    ) -> tuple[Server, Client, Metrics]:
        n = participation.shape[0]
        step_mask = as_step_mask(steps, data)
        dropped = jnp.zeros(n, bool) if dropped is None else dropped
        chex.assert_tree_shape_prefix((clients, data, step_mask, dropped), (n,))
        chex.assert_type([participation, step_mask, dropped], bool)
        round_key = jax.random.fold_in(key, server.round)
        arrived = participation & ~dropped
        measure = algorithm.measure if measured else None
        run = partial(run_client, algorithm.reduction == "stack" or measure is not None)
        run = _skipping_absent(run) if backend == "loop" else run
        rows = jnp.arange(n)
        shared = (server, round_key, clients.id, participation)
        sums, each = map_clients(run, shared, (clients, data, arrived, step_mask, rows))
        upload_shapes = _report_shapes(algorithm, server, clients.state, data).upload
        if secure is None:
            upload, public = _reduced(algorithm, privacy, server, sums, each, round_key)
            enough = sums.weight > 0
        else:
            like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), upload_shapes)
            who = clients.id, participation, each.answered
            enough, upload = _opened(secure, sums.upload, who, round_key, like)
            public = ()
            # Without a sum nobody counted: neither in the numbers, nor for its own state.
            counted = sums, each.loss, each.weight
            sums, loss, weight = select(enough, counted, zeros_like(counted))
            each = each._replace(client=select(enough, each.client, clients), loss=loss, weight=weight)

        came = sums.one if secure is None else each.answered.sum().astype(sums.one.dtype)
        expected = came if privacy is None else privacy.expected_clients
        cohort = Cohort(
            each.weight,
            each.weight > 0,
            jnp.asarray(expected / (population or n), sums.norm.dtype),
            public,
            jax.random.fold_in(round_key, _SERVER),
        )
        if own_noise:
            cohort = secure_cohort(secure, each.answered, population or n, round_key)
        if privacy is not None:  # what follows from who came is exact: an algorithm that reads it fails here
            cohort = cohort._replace(weights=None, present=None, public=None)
        new = algorithm.aggregate(server, upload, cohort)
        if down is not None:
            down_key = jax.random.fold_in(round_key, _DOWN)
            sent, _, residual = compressed_step(down, down_key, server.residual, server.delta, new.delta)
            new = new._replace(delta=sent, residual=residual)
        if privacy is None:  # with privacy, noise must be released even if nobody came
            new = select(enough, new, server)
        else:
            bound_key = jax.random.fold_in(round_key, _BOUND)
            new = new._replace(clip=next_bound(server.clip, sums.vote, privacy, bound_key))
        seen = (each.client.state,) if algorithm.measures_own else ()
        extra = {} if measure is None else measure(server, each.upload, each.weight, *seen)
        extra = extra | dict(_divide(sums.measured, sums.one))
        if privacy is not None:
            extra["clipped"] = _divide(0.5 * sums.one - sums.vote, sums.one)  # votes are +-1/2
        sent = jnp.asarray(expected, jnp.float32)
        asked = participation.sum().astype(jnp.float32) if privacy is None else sent
        if algorithm.traffic is None:
            each_sends = bits(codec, upload_shapes) if secure is None else secure.bits * sums.upload.size
            upload_bits = float(each_sends) * sent
            download_bits = _download_bits(algorithm, down, server, asked, population or n)
        else:
            of_step = algorithm.traffic(server, *_one_client(clients.state, data))
            upload_bits = of_step * (step_mask & (each.weight > 0)[:, None]).sum(dtype=jnp.float32)
            download_bits = of_step * (step_mask & participation[:, None]).sum(dtype=jnp.float32)
        metrics = Metrics(
            loss=_divide(sums.loss, sums.one),
            client_loss=each.loss,
            upload_norm=_divide(sums.norm, sums.one),
            upload_bits=upload_bits,
            download_bits=download_bits,
            participants=sums.one,
            dropped=(participation & dropped).sum(),
            excluded=each.excluded,
            extra=extra,
            summed=True if secure is None else enough,
        )
        return new._replace(round=server.round + 1), each.client, metrics

    return Federation(init, round_)


def _reduced(
    algorithm: Algorithm, privacy: Privacy | None, server: Server, sums: _Sums, each: _Each, round_key: Array
) -> tuple[Tree, Tree]:
    """What the server gets of a round -> (upload, public numbers): every upload, their mean, or their noisy mean.

    With noise there are no public numbers: an exact mean over those who came would say who came.
    """
    if algorithm.reduction == "stack":
        return each.upload, each.public
    if privacy is None:
        return _divide(sums.upload, sums.weight), _divide(sums.public, sums.weight)
    noise_key = jax.random.fold_in(round_key, _NOISE)
    return noisy_mean(sums.upload, server.clip, privacy, noise_key), None


def _opened(
    secure: SecureSum, total: Array, who: tuple[Array, Array, Array], round_key: Array, like: Tree
) -> tuple[Array, Tree]:
    """Sum of masked integers -> (whether enough answered, the mean of their updates).

    who: ids, who joined and who answered (n,).
    """
    ids, joined, answered = who
    enough = answered.sum() >= least_answers(secure, joined.sum())
    total = open_sum(secure, total, ids, joined, answered, jax.random.fold_in(round_key, _MASK))
    return enough, secure.decode(jax.random.fold_in(round_key, _ROTATION), total, like)


def _skipping_absent(run: Callable[..., tuple[_Sums, _Each]]) -> Callable[..., tuple[_Sums, _Each]]:
    """The same sums, but a client that is absent or makes no step is not computed; not for use under ``vmap``."""
    run = jax.jit(run)  # traced once for its shapes and its branch

    def run_or_skip(shared: tuple[Server, Array], one: tuple) -> tuple[_Sums, _Each]:
        _, _, takes_part, step_mask, _ = one
        sums, each = jax.eval_shape(run, shared, one)
        nothing = sums, each._replace(client=())

        def absent(shared: tuple[Server, Array], one: tuple) -> tuple[_Sums, _Each]:
            del shared
            sums, each = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing)
            return sums, each._replace(client=one[0])

        return jax.lax.cond(takes_part & step_mask.any(), run, absent, shared, one)

    return run_or_skip


def client_work(
    algorithm: Algorithm,
    codec: Codec,
    server: Server,
    client: Client,
    shard: Shard,
    step_mask: Array,
    key: Array,
) -> tuple[Client, Report, Tree]:
    """What one client does in a round, here and at a hospital -> (its next state, report, message of the codec).

    key: ``fold_in(fold_in(key, round), client.id)``.  The state counts only if the server accepts the message.
    """
    train_key, codec_key = jax.random.split(key)
    state, report = algorithm.client_update(server, client.state, shard, step_mask, train_key)
    message, residual = codec.encode(codec_key, client.residual, report.upload)
    return Client(state, residual, client.id), report, message


def name_excluded(metrics: Metrics, names: Sequence[str] | None = None) -> list[str]:
    """Name the clients of one round whose upload was not finite; on the host.

    Args:
        metrics: of the round.
        names: of the clients in order; None: their numbers.

    Returns:
        The names.
    """
    rows = np.flatnonzero(np.asarray(metrics.excluded))
    return [str(row) if names is None else names[row] for row in rows]


def as_step_mask(steps: Array, data: Shard) -> Array:
    """Counts (n,) int or masks (n, steps) bool -> masks (n, steps) bool."""
    if steps.ndim == 2:
        return steps
    return jnp.arange(jax.tree.leaves(data.batches)[0].shape[1]) < steps[:, None]


def _divide(total: Tree, divisor: Array) -> Tree:
    return jax.tree.map(lambda x: x / jnp.where(divisor > 0, divisor, 1).astype(x.dtype), total)


def _report_shapes(algorithm: Algorithm, server: Server, states: Tree, data: Shard) -> Report:
    state, shard = _one_client(states, data)
    mask = jax.ShapeDtypeStruct(jax.tree.leaves(shard.batches)[0].shape[:1], bool)
    return jax.eval_shape(algorithm.client_update, server, state, shard, mask, jax.random.key(0))[1]


def _one_client(states: Tree, data: Shard) -> tuple[Tree, Shard]:
    """Shapes of one client's state and data."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (states, data))


def _download_bits(
    algorithm: Algorithm, down: Codec | None, server: Server, asked: Array, population: int
) -> Array:
    """Whole deltas to those taking part, or a compressed step to everybody, who began with the whole delta."""
    download = algorithm.download or (lambda server: server.delta)
    whole = float(message_bits(jax.eval_shape(download, server)))
    if down is None:
        return whole * asked
    step = float(bits(down, server.delta))
    return jnp.where(server.round == 0, whole, step).astype(jnp.float32) * population
