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
        batches: leaves (steps, batch, ...).
        samples: (), the client's number of samples, its weight in a mean.
        rate: (), factor on this client's learning rate; None for 1.
    """

    batches: Tree
    samples: Array
    rate: Array | None = None


class Server(NamedTuple):
    """What the server keeps between rounds; ``delta`` and what the algorithm needs of ``state`` are broadcast.

    Attributes:
        delta: the shared delta.
        round: () int32, rounds so far.
        state: of the algorithm: moments, control variates.
        clip: (), current clipping bound; constant unless the privacy mechanism adapts it.
        residual: of the codec of the server's own steps, if it has one.
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
        residual: of the codec: what was not sent yet.
        id: () uint32, names the client's random stream; travels with it when clients are permuted.
    """

    state: Tree
    residual: Tree
    id: Array


class Report(NamedTuple):
    """What one client's work yields.

    Attributes:
        upload: the only tree that depends on the client's data; goes through codec, clipping and noise.
        weight: (), weight in the mean; 1 for every client when privacy is on.
        loss: (), mean local loss, a metric.
        public: scalars that depend on the schedule only (step counts), averaged exactly; never compressed or noised.
        measured: further metrics, {name: ()}, averaged over clients; they never leave a hospital on a network.
    """

    upload: Tree
    weight: Array
    loss: Array
    public: Tree = ()
    measured: Tree = ()


class Cohort(NamedTuple):
    """What an algorithm may know about a round when it aggregates.

    With privacy ``weights``, ``present`` and ``public`` are None: they are exact and follow from who came, so nothing
    that is released may depend on them.  What is left is public or random.

    Attributes:
        weights: (n,), weights of the uploads, 0 where none arrived or it was excluded.
        present: (n,) bool.
        fraction: (), participants / population; with privacy the expected, public number.
        public: weighted mean of ``Report.public`` for a mean, stacked (n,) for a stack.
        key: for randomness of the server.
    """

    weights: Array | None
    present: Array | None
    fraction: Array
    public: Tree | None
    key: Array


class Algorithm(NamedTuple):
    """A federated algorithm; ``client_update`` sees one client, so that any backend may map it.

    Examples:
        The mean of two clients' targets, from FedAvg on a quadratic loss:

        >>> import jax, jax.numpy as jnp, optax
        >>> from medvfm_jax.federated import Shard, gradient_of, make_round
        >>> from medvfm_jax.federated.algorithms import fedavg
        >>> pull = gradient_of(lambda delta, batch, key: 0.5 * jnp.sum((delta["w"] - batch) ** 2))
        >>> federation = make_round(fedavg(pull, optax.sgd(1.0)))
        >>> data = Shard(jnp.array([[[0.0]], [[4.0]]]), samples=jnp.array([1.0, 3.0]))
        >>> server, clients = federation.init({"w": jnp.zeros(1)}, data)
        >>> everyone, one_step = jnp.ones(2, bool), jnp.ones(2, int)
        >>> server, clients, metrics = federation.round(server, clients, data, everyone, one_step, jax.random.key(0))
        >>> float(server.delta["w"][0])
        3.0

    Attributes:
        init_server: (delta) -> (delta to broadcast, state of the algorithm).
        init_client: (delta, client id) -> state of one client.
        client_update: (server, state, shard, step_mask (steps,) bool, key) -> (state, Report).
        aggregate: (server, upload, cohort) -> Server; ``upload`` is the mean if ``reduction`` is "mean", and all
            uploads stacked (n, ...) (zeros where none arrived) if it is "stack", as robust rules need.
        reduction: "mean" or "stack".
        measure: (server, uploads stacked, weights (n,)) -> dict of scalars reported with the round, or None.
        measures_own: whether ``measure`` is also given the clients' states after the round, stacked (n, ...), which no
            server has: such a measure is for the simulator, and is left out on a network.
        download: (server) -> what a client receives, for counting bits; None: ``server.delta``.
        model: (server, state of a client) -> the delta that this client predicts with; for state None, a client that
            took no part, without the leaves that only clients have.
        reads: what a client's work takes of its data beside one gradient per local step, in words; "" for nothing.
            Patient-level privacy puts noise on that gradient alone, so it refuses such an algorithm.
        exact: what ``aggregate`` reads of a round beside the mean of the uploads and public constants, in words; ""
            for nothing. Noise on the mean does not cover it, so with client-level privacy such an algorithm is
            refused.
        applies: what ``aggregate`` does with the mean of the uploads, and so with noise on it, where it does more
            than add it to the delta, in words; "" for adding it.
        traffic: (server, state, shard) -> bits a client sends in one local step, and as many receives, from shapes,
            where the server computes a part of each step; None: uploads and downloads are what crosses.
        weights: what ``Report.weight`` is: the client's samples, 1 for every client, or a number that follows from
            its upload and has no public bound, which a grid of whole numbers (secure aggregation) needs.
        uploads: a change, zero if nothing was learnt, or the model itself, which clipping would cut to nothing.
    """

    init_server: Callable[[Tree], tuple[Tree, Tree]]
    init_client: Callable[[Tree, Array], Tree]
    client_update: Callable[..., tuple[Tree, Report]]
    aggregate: Callable[[Server, Tree, Cohort], Server]
    reduction: Reduction = "mean"
    measure: Callable[..., dict[str, Array]] | None = None
    download: Callable[[Server], Tree] | None = None
    model: Callable[[Server, Tree], Tree] = lambda server, state: server.delta
    reads: str = ""
    exact: str = ""
    applies: str = ""
    traffic: Callable[[Server, Tree, Shard], float] | None = None
    weights: Weights = "samples"
    uploads: Literal["change", "model"] = "change"
    measures_own: bool = False


class Codec(NamedTuple):
    """Compress one client's update; the state is per client, e.g. an error-feedback residual.

    A message is a pytree of arrays; its bits follow from its static shapes and dtypes.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from medvfm_jax.federated.codecs import bits, top_k
        >>> codec, update = top_k(0.25), {"w": jnp.array([0.1, -3.0, 0.2, 0.0])}
        >>> message, state = codec.encode(jax.random.key(0), codec.init(update), update)
        >>> codec.decode(message, update)["w"].tolist()
        [0.0, -3.0, 0.0, 0.0]
        >>> bits(codec, update)  # one float32, and its place among four
        34

    Attributes:
        init: (update) -> state.
        encode: (key, state, update) -> (message, state).
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
        quantile: share of the upload norms below the bound.
        rate: step size of the logarithm of the bound.
        bit_noise: standard deviation of the noise on the sum of the halves.

    References:
        https://arxiv.org/abs/1905.03871, algorithm 1
    """

    quantile: float = 0.5
    rate: float = 0.2
    bit_noise: float = 1.0


class Privacy(NamedTuple):
    """Central client-level DP: (sum of clipped uploads + N(0, (clip noise_multiplier)^2)) / expected_clients.

    Clipping comes after decoding (rounding or a residual could exceed the bound), weights are uniform, and
    ``expected_clients`` is public and fixed, so the divisor reveals nothing.  Losses, norms and counts reported
    with a round are exact: they are for the simulator's eyes and are not private; `round_step` passes on none of them.
    The noise is as secret as the round's key: draw that with `privacy.draw_secret`, never from a seed that is recorded.

    Attributes:
        clip: C, l2 norm to which an upload is clipped; the first one if ``adapt`` moves it.
        noise_multiplier: z, standard deviation of the noise on the sum in clips.
        expected_clients: public divisor of the sum.
        unit: what is protected, "client" or "patient".
        neighbours: how two neighbouring data sets differ, see ``privacy.account``.
        adapt: moves the clip; None keeps it.
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
    expected number of clients, which tells nothing about who came.

    Attributes:
        loss: mean local loss.
        client_loss: (n,), 0 where a client did not count.
        upload_norm: mean l2 norm before clipping.
        upload_bits: sent by clients.
        download_bits: received by clients.
        participants: uploads that entered the aggregate.
        dropped: clients that began the round and vanished.
        excluded: (n,) bool, clients whose upload was not finite.
        extra: what the algorithm measured.
        summed: False: too few answered for secure aggregation, so no client counted.
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
    """A federated run in two pure functions.

    Attributes:
        init: (delta, data, ids=None) -> (server, clients); ids (n,) uint32 of the clients, None for 0 to n - 1.
        round: (server, clients, data, participation (n,) bool, steps (n, steps) bool or (n,) int, key, dropped=None)
            -> (server, clients, Metrics), jittable; server and clients are pytrees: checkpoint them and go on
            exactly.
    """

    init: Callable[..., tuple[Server, Client]]
    round: Callable[..., tuple[Server, Client, Metrics]]
