"""The records of a federation: what an algorithm, a codec and a privacy mechanism are, and what a round returns.

Trees are pytrees of arrays.  "Stacked" means: a leading axis n over clients.  Nothing here computes anything.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jax import Array

Tree = Any
Reduction = Literal["mean", "stack"]
Backend = Literal["vmap", "loop", "shard_map"]
Weights = Literal["samples", "equal", "upload"]


class Shard(NamedTuple):
    """Data of one client for one round, or of all clients, stacked.

    Attributes:
        batches: leaves (steps, batch, ...), one batch per local step.
        samples: (), the client's number of samples, its weight in a mean.
        rate: (), factor on this client's learning rate, or None for 1.
    """

    batches: Tree
    samples: Array
    rate: Array | None = None


class Server(NamedTuple):
    """What the server keeps between rounds; ``delta`` and what the algorithm needs of ``state`` are broadcast.

    Attributes:
        delta: the trained parameters that are shared, None where a leaf is personal or frozen.
        round: () int32, the number of the next round.
        state: of the algorithm: moments, control variates.
        clip: (), current clipping bound, an l2 norm; constant unless the privacy mechanism adapts it, infinite
            without privacy.
        residual: state of the codec of the server's own steps, () without one.
    """

    delta: Tree
    round: Array
    state: Tree
    clip: Array
    residual: Tree = ()


class Client(NamedTuple):
    """What one client keeps between rounds, or all clients, stacked.

    Attributes:
        state: of the algorithm: control variates, personal parameters.
        residual: state of the codec: what was not sent yet.
        id: () uint32, seeds the client's random stream; travels with it when clients are permuted.
    """

    state: Tree
    residual: Tree
    id: Array


class Report(NamedTuple):
    """What one client's work yields.

    Attributes:
        upload: the only tree that depends on the client's data; goes through codec, clipping and noise.
        weight: (), in the mean; with privacy every client weighs 1 instead.
        loss: (), mean local loss over the steps made, a metric.
        public: scalars that depend on the schedule only (step counts), averaged exactly; never compressed or noised.
        measured: further metrics, {name: ()}, averaged over clients; over a network they are not sent.
    """

    upload: Tree
    weight: Array
    loss: Array
    public: Tree = ()
    measured: Tree = ()


class Cohort(NamedTuple):
    """What an algorithm may know about a round when it aggregates.

    With privacy ``weights``, ``present`` and ``public`` are None: they are exact and reveal who took part, so nothing
    that is released may depend on them.  What is left is public or random.

    Attributes:
        weights: (n,), of the uploads, 0 where none arrived or it was excluded.
        present: (n,) bool, where an upload entered the aggregate.
        fraction: (), participants / population; with privacy the expected, public number.
        public: weighted mean of ``Report.public`` for a mean, stacked (n, ...) for a stack.
        key: for randomness of the server.
    """

    weights: Array | None
    present: Array | None
    fraction: Array
    public: Tree | None
    key: Array


class Algorithm(NamedTuple):
    """A federated algorithm; ``client_update`` sees one client, so that any backend may map it.

    A server that adds the mean update, with clients that take one step of gradient descent:

    >>> import jax, jax.numpy as jnp
    >>> from medvfm_jax.federated import Algorithm, Report, Shard, make_round
    >>> def client_update(server, state, shard, step_mask, key):
    ...     change = 0.5 * (shard.batches[0].mean() - server.delta)
    ...     return state, Report(change, shard.samples, loss=jnp.abs(change))
    >>> mean_of_data = Algorithm(
    ...     init_server=lambda delta: (delta, ()),
    ...     init_client=lambda delta, client_id: (),
    ...     client_update=client_update,
    ...     aggregate=lambda server, mean, cohort: server._replace(delta=server.delta + mean),
    ... )
    >>> federation = make_round(mean_of_data)
    >>> data = Shard(jnp.array([[[2.0]], [[8.0]]]), samples=jnp.array([1.0, 3.0]))  # two clients, one step
    >>> server, clients = federation.init(jnp.float32(0), data)
    >>> both, steps = jnp.ones(2, bool), jnp.ones(2, int)
    >>> server, clients, metrics = federation.round(server, clients, data, both, steps, jax.random.key(0))
    >>> float(server.delta), int(metrics.participants)  # half of (1 x 2 + 3 x 8) / 4
    (3.25, 2)

    Attributes:
        init_server: (delta) -> (delta to broadcast, state of the algorithm).
        init_client: (delta, client_id () uint32) -> state of one client.
        client_update: (server, state, shard, step_mask (steps,) bool, key) -> (state, Report).
        aggregate: (server, upload, cohort) -> Server; ``upload`` is the mean if ``reduction`` is "mean", and all
            uploads stacked (n, ...), zeros where none arrived, if it is "stack".
        reduction: "mean", or "stack" for a server that needs every upload, as robust rules do.
        measure: (server, uploads stacked, weights (n,)) -> dict of scalars reported with the round, or None.
        download: (server) -> what a client receives, for counting bits; None: ``server.delta``.
        model: (server, state of a client) -> the delta that this client predicts with; for state None, a client that
            took no part, without personal leaves.
        reads: what a client's work takes of its data beside one gradient per local step, in words; "" for nothing.
            Patient-level privacy puts noise on that gradient alone, so it refuses such an algorithm.
        exact: what ``aggregate`` reads of a round beside the mean of the uploads and public constants, in words; ""
            for nothing. Noise on the mean does not cover it, so with client-level privacy such an algorithm is
            refused.
        applies: what ``aggregate`` does with the mean of the uploads, and so with noise on it, where it does more
            than add it to the delta, in words; "" for adding it.
        traffic: (server, state, shard) -> bits a client sends in one local step, and as many receives, from shapes,
            where the server computes a part of each step; None: uploads and downloads are what crosses.
        weights: what ``Report.weight`` is: "samples"; "equal", 1 for every client; or "upload", a number that follows
            from the upload and has no public bound, which the integer grid of secure aggregation needs.
        uploads: "change", zero if nothing was learnt, or "model", the parameters themselves, which clipping would
            shrink.
    """

    init_server: Callable[[Tree], tuple[Tree, Tree]]
    init_client: Callable[[Tree, Array], Tree]
    client_update: Callable[..., tuple[Tree, Report]]
    aggregate: Callable[[Server, Tree, Cohort], Server]
    reduction: Reduction = "mean"
    measure: Callable[[Server, Tree, Array], dict[str, Array]] | None = None
    download: Callable[[Server], Tree] | None = None
    model: Callable[[Server, Tree], Tree] = lambda server, state: server.delta
    reads: str = ""
    exact: str = ""
    applies: str = ""
    traffic: Callable[[Server, Tree, Shard], float] | None = None
    weights: Weights = "samples"
    uploads: Literal["change", "model"] = "change"


class Codec(NamedTuple):
    """Compress one client's update; the state is per client, e.g. an error-feedback residual.

    A message is a pytree of arrays; its bits follow from its static shapes and dtypes.  Half precision as a codec:

    >>> import jax, jax.numpy as jnp
    >>> from medvfm_jax.federated import Codec, codecs
    >>> half = Codec(
    ...     init=lambda update: (),
    ...     encode=lambda key, state, update: (jax.tree.map(lambda x: x.astype(jnp.float16), update), state),
    ...     decode=lambda message, like: jax.tree.map(lambda x, y: x.astype(y.dtype), message, like),
    ... )
    >>> update = {"a": jnp.array([0.1, 0.25])}
    >>> message, state = half.encode(jax.random.key(0), half.init(update), update)
    >>> half.decode(message, update)["a"].tolist()
    [0.0999755859375, 0.25]
    >>> codecs.bits(half, update), codecs.bits(codecs.identity(), update)
    (32, 64)

    Attributes:
        init: (update) -> state, before the first message.
        encode: (key, state, update) -> (message, next state).
        decode: (message, like) -> update, where ``like`` has the update's structure, shapes and dtypes.
    """

    init: Callable[[Tree], Tree]
    encode: Callable[[Array, Tree, Tree], tuple[Tree, Tree]]
    decode: Callable[[Tree, Tree], Tree]


class AdaptiveClip(NamedTuple):
    """Move the bound to a quantile of the upload norms (Andrew et al. 2019).

    C <- C exp(-rate (b - quantile)), b = 1/2 + (sum of +1/2 where norm <= C, else -1/2, + N(0, bit_noise^2)) /
    expected clients: with halves one client changes the sum by 1/2, as its noise assumes.
    The noise on the updates grows to (z^-2 - (2 bit_noise)^-2)^(-1/2), so that z stays the whole round's multiplier.

    Attributes:
        quantile: share of the clients whose upload should be shorter than the bound.
        rate: of the geometric steps of the bound.
        bit_noise: standard deviation of the noise on the count, in clients; must be above half of the noise
            multiplier.

    References:
        https://arxiv.org/abs/1905.03871
    """

    quantile: float = 0.5
    rate: float = 0.2
    bit_noise: float = 1.0


class Privacy(NamedTuple):
    """Central differential privacy: (sum of clipped uploads + N(0, (clip noise_multiplier)^2)) / expected_clients.

    Clipping comes after decoding (rounding or a residual could exceed the bound), weights are uniform, and
    ``expected_clients`` is public and fixed, so the divisor reveals nothing.  Losses, norms and counts in the `Metrics`
    of a simulated round are exact and not private; `round_step` passes on none of them.  The noise is as secret as the
    round's key: draw that with `privacy.draw_secret`, never from a seed that is recorded.

    Attributes:
        clip: C, bound on the l2 norm of one upload, or with unit "patient" of one patient's gradient.
        noise_multiplier: z, standard deviation of the noise on the sum in clips.
        expected_clients: the divisor: rate times population, of patients in a batch with unit "patient".
        unit: what is protected: "client" or "patient".
        neighbours: relation of neighbouring data sets: "add or remove one", "zero out one" or "replace one".
        adapt: settings of an adaptive clipping bound that starts at ``clip``, None for a fixed one.

    References:
        https://arxiv.org/abs/1710.06963
    """

    clip: float
    noise_multiplier: float
    expected_clients: float
    unit: str = "client"
    neighbours: str = "add or remove one"
    adapt: AdaptiveClip | None = None


class Metrics(NamedTuple):
    """One round in numbers.  Scalars unless a shape is given; means are over the clients that counted.

    Bits are float32 totals over clients: an int32 would overflow at 256 MiB.  With privacy they are those of the
    expected number of clients, which reveals nothing about the participants.

    Attributes:
        loss: mean over clients of their mean local loss.
        client_loss: (n,), 0 where a client did not count.
        upload_norm: mean l2 norm of an upload, after decoding and before clipping.
        upload_bits: sent by all clients.
        download_bits: received by all clients.
        participants: number of uploads that entered the aggregate.
        dropped: number of clients that began the round and vanished.
        excluded: (n,) bool, clients whose upload, loss or state was not finite, or with secure aggregation out of
            range.
        extra: {name: ()}, from ``Algorithm.measure`` and ``Report.measured``; with privacy also "clipped", the share
            of uploads longer than the bound.
        summed: False if too few clients answered for secure aggregation, so that the round changed nothing.
    """

    loss: Array
    client_loss: Array
    upload_norm: Array
    upload_bits: Array
    download_bits: Array
    participants: Array
    dropped: Array
    excluded: Array
    extra: dict[str, Array]
    summed: Array | bool = True


class Federation(NamedTuple):
    """A federation as two pure functions; server and clients are pytrees: checkpoint them and go on exactly.

    Attributes:
        init: (delta, data stacked) -> (server, clients stacked), before the first round.
        round: (server, clients, data, participation (n,) bool, steps (n, steps) bool or (n,) int, key, dropped=None,
            measured=True) -> (server, clients, Metrics), jittable, see `make_round`.
    """

    init: Callable[[Tree, Shard], tuple[Server, Client]]
    round: Callable[..., tuple[Server, Client, Metrics]]
