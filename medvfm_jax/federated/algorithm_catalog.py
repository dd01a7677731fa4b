"""Algorithms by name, with their options, as `medvfm federate` offers them; and what of a round is a client's model.

>>> entry = algorithm_catalog.get("fedprox")
>>> algorithm = entry.make(loss, optax.adamw(1e-3), mu=0.1)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from medvfm_jax.adapters.option_values import parse_assignments, typed
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.federated import algorithms, personalise, robust
from medvfm_jax.federated.algorithms.averaging import AveragingState, averaging
from medvfm_jax.federated.algorithms.independent import independent
from medvfm_jax.federated.algorithms.low_rank_exact import BaseChange
from medvfm_jax.federated.base_increments import on_increments, with_increments, without_increments
from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.lora_aggregation import factors_of, names_of_a, names_of_b
from medvfm_jax.federated.personal_parts import join_personal
from medvfm_jax.federated.records import Algorithm, Server, Shard, Tree

HEAD = r".*/(output_hypernetworks_mlps_\d+|head)/.*"  # what makes masks out of features: a client's own in fedper

Own = Literal["nothing", "part", "all"]


class Entry(NamedTuple):
    """An algorithm of the catalogue.

    make(loss, optimizer, **options), or with a learning rate in the place of the optimizer if ``plain_sgd``: its
    formula is about SGD.  options: name -> default.  own: what of the model stays at the client.  needs: "lora" if it
    is about low-rank factors.  by_gradient(options) -> arguments of ``averaging`` that make the same algorithm, for a
    gradient of one's own such as patient-level privacy; None if it is no average of changes.  needs_clients: whether
    it takes the option ``clients``, their number.  on_base: it changes frozen weights, so the adapter needs the parts
    of ``base_increments``.  takes: an argument of ``make`` beside loss and optimizer, a function of the model:
    "features" of a batch for a contrast, or "logits" with "public_batches" of unlabelled images, or "params", the
    frozen weights, or "split", the model in three parts.  instance_mixing: as ``systems.FederatedSystem``.
    """

    make: Callable[..., Algorithm]
    options: Mapping[str, Any] = {}
    plain_sgd: bool = False
    own: Own = "nothing"
    needs: Literal["", "lora"] = ""
    by_gradient: Callable[..., dict[str, Any]] | None = None
    needs_clients: bool = False
    on_base: bool = False
    takes: Literal["", "features", "logits", "params", "split"] = ""
    instance_mixing: bool = False


class Models(NamedTuple):
    """The models of a round: shared, a whole delta for everybody; own, stacked (n, ...), None where nothing is own."""

    shared: Tree
    own: Tree


def _plain(**arguments: Any) -> Callable[..., dict[str, Any]]:
    return lambda: {"server_optimizer": optax.sgd(1.0)} | arguments


def _robust(rule: Callable[..., robust.Rule], described_by: Any = None) -> Callable[..., Algorithm]:
    def make(loss: Any, optimizer: Any, **options: Any) -> Algorithm:
        return robust.robust(algorithms.fedavg(loss, optimizer), rule(**options))

    make.__doc__ = (described_by or rule).__doc__
    return make


def _moon(loss: Any, optimizer: Any, features: Any = None, **options: Any) -> Algorithm:
    return algorithms.moon(loss, features, optimizer, **options)


def _feddf(
    loss: Any,
    optimizer: Any,
    logits: Any = None,
    public_batches: Any = None,
    server_rate: float = 1e-3,
    server_steps: int = 8,
) -> Algorithm:
    del server_steps  # the number of public batches
    return algorithms.feddf(loss, optimizer, logits, public_batches, optax.adam(server_rate))


def _centralised(loss: Any, optimizer: Any) -> Algorithm:
    """One client with the images of all: what training in one place reaches."""
    return independent(loss, optimizer)


_moon.__doc__, _feddf.__doc__ = algorithms.moon.__doc__, algorithms.feddf.__doc__


_SERVER = {"server_rate": 0.1, "tau": 1e-3}

ENTRIES: Mapping[str, Entry] = {
    "fedavg": Entry(
        algorithms.fedavg,
        {"server_rate": 1.0},
        by_gradient=lambda server_rate: {"server_optimizer": optax.sgd(server_rate)},
    ),
    "fedprox": Entry(algorithms.fedprox, {"mu": 0.01}, by_gradient=lambda mu: _plain(mu=mu)()),
    "fedsharp": Entry(algorithms.fedsharp, {"rho": 0.05}),
    "fedavgm": Entry(algorithms.fedavgm, {"server_rate": 1.0, "momentum": 0.9}),
    "fedadagrad": Entry(algorithms.fedadagrad, _SERVER),
    "fedyogi": Entry(algorithms.fedyogi, _SERVER | {"server_rate": 0.01}),
    "fedadam": Entry(algorithms.fedadam, _SERVER),
    "scaffold": Entry(algorithms.scaffold, {"server_rate": 1.0}, plain_sgd=True),
    "fednova": Entry(algorithms.fednova, {"momentum": 0.0, "mu": 0.0}, plain_sgd=True),
    "feddyn": Entry(algorithms.feddyn, {"alpha": 0.1}),
    "qfedavg": Entry(algorithms.qfedavg, {"q": 1.0}, plain_sgd=True),
    "fedper": Entry(
        personalise.fedper,
        {"personal": HEAD},
        own="part",
        by_gradient=lambda personal: _plain(personal=personal)(),
    ),
    "fedbn": Entry(
        personalise.fedbn,
        {"norms": personalise.NORM_LEAVES},
        own="part",
        by_gradient=lambda norms: _plain(personal=norms)(),
    ),
    "fedrep": Entry(personalise.fedrep, {"personal": HEAD, "personal_steps": 2}, own="part"),
    "ditto": Entry(personalise.ditto, {"strength": 0.1}, own="all"),
    "fedit": Entry(algorithms.fedit, needs="lora", by_gradient=_plain()),
    "ffa_lora": Entry(algorithms.ffa_lora, needs="lora", by_gradient=_plain(frozen=names_of_a)),
    "fedsa_lora": Entry(
        algorithms.fedsa_lora, own="part", needs="lora", by_gradient=_plain(personal=names_of_b)
    ),
    "rolora": Entry(algorithms.rolora, needs="lora"),
    "hetlora": Entry(algorithms.hetlora, {"ranks": (), "prune": 1.0, "penalty": 0.0}, needs="lora"),
    "flexlora": Entry(algorithms.flexlora, {"ranks": ()}, needs="lora"),
    "flora": Entry(
        on_increments(algorithms.flora), {"ranks": ()}, needs="lora", needs_clients=True, on_base=True
    ),
    "fedex_lora": Entry(on_increments(algorithms.fedex_lora), needs="lora", needs_clients=True, on_base=True),
    "lora_fair": Entry(algorithms.lora_fair, {"ridge": 0.01}, needs="lora"),
    "median": Entry(_robust(lambda: robust.coordinate_median, robust.coordinate_median)),
    "trimmed_mean": Entry(_robust(robust.trimmed_mean), {"trim": 0.2}),
    "krum": Entry(_robust(robust.krum), {"byzantine": 1}),
    "multi_krum": Entry(_robust(robust.multi_krum), {"byzantine": 1, "chosen": 3}),
    "geometric_median": Entry(_robust(robust.geometric_median), {"iterations": 100, "tolerance": 1e-6}),
    "moon": Entry(_moon, {"mu": 1.0, "temperature": 0.5}, takes="features"),
    "feddf": Entry(_feddf, {"server_rate": 1e-3, "server_steps": 8}, takes="logits"),
    "local": Entry(independent, own="all"),
    "centralised": Entry(_centralised, own="all"),
}
BASELINES = ("local", "centralised")


def get(name: str) -> Entry:
    """An algorithm by name; raises BadFederation with the nearest name."""
    if name not in ENTRIES:
        raise BadFederation(f"There is no algorithm '{name}'{did_you_mean(name, ENTRIES)}.")
    return ENTRIES[name]


def names() -> tuple[str, ...]:
    """Names of all algorithms, baselines included."""
    return tuple(ENTRIES)


def read_options(assignments: Iterable[str], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Texts "mu=0.1" over defaults -> all options, each of the type of its default; raises BadFederation.

    A default of None stands for a whole number or nothing, () for whole numbers with commas between them.
    """
    options = dict(defaults)
    for name, text in parse_assignments(assignments).items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise BadFederation(f"{what} has no option '{name}'; its options: {known}.")
        default = defaults[name]
        if default == ():
            options[name] = tuple(typed(part, int, f"{what}: {name}") for part in text.split(","))
            continue
        options[name] = typed(text, int | None if default is None else type(default), f"{what}: {name}")
    return options


def with_ranks(options: Mapping[str, Any], delta: Tree, clients: Sequence[str]) -> dict[str, Any]:
    """Options with ``ranks`` checked, one per client in order of name; none given: everybody has the adapter's rank.

    Raises BadFederation for another number of ranks than of clients, and for ranks that the adapter does not have.
    """
    if not options.get("ranks", None):
        return dict(options) | ({"ranks": None} if "ranks" in options else {})
    ranks, names = options["ranks"], ", ".join(clients)
    if len(ranks) != len(clients):
        raise BadFederation(
            f"ranks has {len(ranks)} values for {len(clients)} clients; give one for each of {names}, in this order."
        )
    most = max(f.a.shape[-1] for f in factors_of(without_increments(delta)).values())
    for client, rank in zip(clients, ranks, strict=True):
        if not 1 <= rank <= most:
            raise BadFederation(
                f"ranks gives client '{client}' the rank {rank}; the adapter's factors have ranks from 1 to {most} "
                "(lora.rank)."
            )
    return dict(options)


def with_gradient(entry: Entry, name: str, gradient: Callable[[Any], Any]) -> Callable[..., Algorithm]:
    """``make`` of the same algorithm with a gradient of one's own, made from a loss; raises BadFederation."""
    if entry.by_gradient is None:
        able = ", ".join(n for n, e in ENTRIES.items() if e.by_gradient)
        raise BadFederation(
            f"Patient-level privacy needs an algorithm whose clients follow one gradient and are averaged, not {name}; "
            f"choose from {able}."
        )

    def make(loss: Any, optimizer: optax.GradientTransformation, **options: Any) -> Algorithm:
        return averaging(loss, optimizer, gradient=gradient, **entry.by_gradient(**options))

    return make


def outline(entry: Entry, options: Mapping[str, Any]) -> Algorithm:
    """The algorithm of an entry without a model: for its shapes and for what it says of itself."""
    return entry.make(_any_loss, 1.0 if entry.plain_sgd else optax.sgd(1.0), **options)


def fitted(name: str, entry: Entry, options: Mapping[str, Any], delta: Tree) -> Entry:
    """The entry for this delta: a system keeps a part at the client only where its server's delta lacks one.

    Raises BadFederation for an algorithm whose parts are not in the delta.
    """
    algorithm = outline(entry, options)
    shared, state = jax.eval_shape(algorithm.init_server, delta)
    kept = jax.eval_shape(algorithm.init_client, delta, jnp.uint32(0))
    complete = len(jax.tree.leaves((shared, getattr(state, "frozen", ())))) == len(jax.tree.leaves(delta))
    strange = entry.own == "part" and not complete and _structure(kept) != _structure(delta)
    if strange or _structure(shared) != _structure(delta):
        raise BadFederation(
            f"{name} does not divide the delta into shared and own parts; it runs from Python only."
        )
    if entry.needs == "lora":
        factors_of(delta)  # refuses a delta without any
    if entry.own == "part" and complete and name not in ENTRIES:
        return entry._replace(own="nothing")
    if entry.own == "part" and complete:
        raise BadFederation(
            f"{name} keeps a part of the model at the client, but its pattern matches no part of it."
        )
    if not jax.tree.leaves(shared):
        raise BadFederation(f"{name} shares nothing: its pattern for personal parts matches the whole model.")
    return entry


def noised_numbers(
    entry: Entry, options: Mapping[str, Any], delta: Tree, unit: Literal["client", "patient"]
) -> int:
    """Numbers that are clipped and noised together: those of an upload, or of a gradient with unit patient."""
    algorithm = outline(entry, options)
    received, memory = jax.eval_shape(algorithm.init_server, delta)
    state = jax.eval_shape(algorithm.init_client, delta, jnp.uint32(0))
    if unit == "patient":  # averages only: what is shared and what is personal trains, the rest is frozen
        return _size((received, state))
    server = Server(received, jnp.int32(0), memory, jnp.float32(1))
    shard = Shard(jnp.zeros((1, 1)), jnp.ones(()))
    work = (server, state, shard, jnp.ones(1, bool), jax.random.key(0))
    return _size(jax.eval_shape(algorithm.client_update, *work)[1].upload)


def _any_loss(delta: Tree, batch: Tree, key: Any) -> Any:
    """A loss that only shapes are asked of."""
    del key
    return sum(x.sum() for x in jax.tree.leaves(delta)) + batch.sum()


def _size(tree: Tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def models_of(own: Own, start: Tree, server: Server, states: Tree) -> Models:
    """The models a round ends with, from the first delta, the server and the clients' states of the algorithm.

    Where the server holds nothing because a part is personal, everybody's model has the first values: what a client
    keeps is nobody else's.
    """
    shared = server.delta
    if isinstance(server.state, AveragingState):
        shared = join_personal(shared, server.state.frozen)
    if isinstance(server.state, BaseChange):
        shared = with_increments(shared, server.state.dense)
    shared = join_personal(shared, start)
    if own == "nothing":
        return Models(shared, jax.tree.map(lambda x: None, start))
    return Models(shared, getattr(states, "delta", states) if own == "all" else states)


def model_of(models: Models, client: int | None) -> Tree:
    """The whole delta that a client uses, or with None somebody who took no part."""
    if client is None:
        return models.shared
    own = jax.tree.map(lambda x: x[client], models.own)
    return join_personal(own, models.shared)


def _structure(tree: Tree) -> Any:
    """Of the whole tree, also where leaves are missing."""
    return jax.tree.structure(tree, is_leaf=lambda x: x is None)
