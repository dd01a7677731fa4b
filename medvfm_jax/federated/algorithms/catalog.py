"""Algorithms by name, with their options, as `medvfm federate` offers them.

Examples:
    >>> entry = ALGORITHMS["fedprox"]
    >>> algorithm = entry.make(gradient_of(loss), optax.adamw(1e-3), mu=0.1)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from medvfm_jax.adapters.option_values import typed
from medvfm_jax.adapters.training_options import parts_of, rate_of
from medvfm_jax.catalog import Catalog, did_you_mean
from medvfm_jax.federated import algorithms
from medvfm_jax.federated.algorithms import personalise
from medvfm_jax.federated.algorithms.independent import independent
from medvfm_jax.federated.algorithms.option_ranges import check_range
from medvfm_jax.federated.core import robust
from medvfm_jax.federated.core.base_increments import on_increments, without_increments
from medvfm_jax.federated.core.client_models import first_shapes
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Whole, unchanged
from medvfm_jax.federated.core.lora_aggregation import factors_of
from medvfm_jax.federated.core.records import Algorithm, Shard, Tree

HEAD = r".*/(output_hypernetworks_mlps_\d+|head)/.*"  # what makes masks out of features: a client's own in fedper


class AlgorithmEntry(NamedTuple):
    """An algorithm of the catalogue.

    make(gradient, optimizer, **options), or with a learning rate in the place of the optimizer if ``plain_sgd``: its
    formula is about SGD.  options: name -> default.  needs: "lora" if it is about low-rank factors.  needs_clients:
    whether it takes the option ``clients``, their number.  on_base: it changes frozen weights, so the adapter needs the
    parts of ``base_increments``.  takes: an argument of ``make`` beside gradient and optimizer: "features" of a batch
    for a contrast, or "logits" with "public_batches" of unlabelled images, functions of the model, or "params", the
    frozen weights, or "split", the model in three parts.  instance_mixing: as ``systems.FederatedSystem``.
    """

    make: Callable[..., Algorithm]
    options: Mapping[str, Any] = {}
    plain_sgd: bool = False
    needs: Literal["", "lora"] = ""
    needs_clients: bool = False
    on_base: bool = False
    takes: Literal["", "features", "logits", "params", "split"] = ""
    instance_mixing: bool = False


def _robust(rule: Callable[..., robust.Rule], described_by: Any = None) -> Callable[..., Algorithm]:
    def make(gradient: Gradient, optimizer: Any, **options: Any) -> Algorithm:
        return robust.robust(algorithms.fedavg(gradient, optimizer), rule(**options))

    make.__doc__ = (described_by or rule).__doc__
    return make


def _moon(gradient: Gradient, optimizer: Any, features: Any = None, **options: Any) -> Algorithm:
    return algorithms.moon(gradient, features, optimizer, **options)


def _feddf(
    gradient: Gradient,
    optimizer: Any,
    logits: Any = None,
    public_batches: Any = None,
    server_rate: float = 1e-3,
    server_steps: int = 8,
) -> Algorithm:
    del server_steps  # the number of public batches
    return algorithms.feddf(gradient, optimizer, logits, public_batches, optax.adam(server_rate))


def _centralised(gradient: Gradient, optimizer: Any) -> Algorithm:
    """One client with the images of all: what training in one place reaches."""
    return independent(gradient, optimizer)


_moon.__doc__, _feddf.__doc__ = algorithms.moon.__doc__, algorithms.feddf.__doc__


_SERVER = {"server_rate": 0.1, "tau": 1e-3}

_ALL: Mapping[str, AlgorithmEntry] = {
    "fedavg": AlgorithmEntry(algorithms.fedavg, {"server_rate": 1.0}),
    "fedprox": AlgorithmEntry(algorithms.fedprox, {"mu": 0.01}),
    "fedsharp": AlgorithmEntry(algorithms.fedsharp, {"rho": 0.05}),
    "fedavgm": AlgorithmEntry(algorithms.fedavgm, {"server_rate": 1.0, "momentum": 0.9}),
    "fedadagrad": AlgorithmEntry(algorithms.fedadagrad, _SERVER),
    "fedyogi": AlgorithmEntry(algorithms.fedyogi, _SERVER | {"server_rate": 0.01}),
    "fedadam": AlgorithmEntry(algorithms.fedadam, _SERVER),
    "scaffold": AlgorithmEntry(algorithms.scaffold, {"server_rate": 1.0}, plain_sgd=True),
    "fednova": AlgorithmEntry(algorithms.fednova, {"momentum": 0.0, "mu": 0.0}, plain_sgd=True),
    "feddyn": AlgorithmEntry(algorithms.feddyn, {"alpha": 0.1}),
    "qfedavg": AlgorithmEntry(algorithms.qfedavg, {"q": 1.0}, plain_sgd=True),
    "fedper": AlgorithmEntry(personalise.fedper, {"personal": HEAD}),
    "fedbn": AlgorithmEntry(personalise.fedbn, {"norms": personalise.NORM_LEAVES}),
    "fedrep": AlgorithmEntry(personalise.fedrep, {"personal": HEAD, "personal_steps": 2}),
    "ditto": AlgorithmEntry(personalise.ditto, {"strength": 0.1}),
    "fedit": AlgorithmEntry(algorithms.fedit, needs="lora"),
    "ffa_lora": AlgorithmEntry(algorithms.ffa_lora, needs="lora"),
    "fedsa_lora": AlgorithmEntry(algorithms.fedsa_lora, needs="lora"),
    "iat": AlgorithmEntry(
        algorithms.iat, {"orthogonality": 0.1, "decoders": algorithms.DECODERS}, needs="lora"
    ),
    "rolora": AlgorithmEntry(algorithms.rolora, needs="lora"),
    "hetlora": AlgorithmEntry(algorithms.hetlora, {"ranks": (), "prune": 1.0, "penalty": 0.0}, needs="lora"),
    "flexlora": AlgorithmEntry(algorithms.flexlora, {"ranks": ()}, needs="lora"),
    "flora": AlgorithmEntry(
        on_increments(algorithms.flora), {"ranks": ()}, needs="lora", needs_clients=True, on_base=True
    ),
    "fedex_lora": AlgorithmEntry(
        on_increments(algorithms.fedex_lora), needs="lora", needs_clients=True, on_base=True
    ),
    "lora_fair": AlgorithmEntry(algorithms.lora_fair, {"ridge": 0.01}, needs="lora"),
    "median": AlgorithmEntry(_robust(lambda: robust.coordinate_median, robust.coordinate_median)),
    "trimmed_mean": AlgorithmEntry(_robust(robust.trimmed_mean), {"trim": 0.2}),
    "krum": AlgorithmEntry(_robust(robust.krum), {"byzantine": 1}),
    "multi_krum": AlgorithmEntry(_robust(robust.multi_krum), {"byzantine": 1, "chosen": 3}),
    "geometric_median": AlgorithmEntry(
        _robust(robust.geometric_median), {"iterations": 100, "tolerance": 1e-6}
    ),
    "pcgrad": AlgorithmEntry(algorithms.pcgrad),
    "cagrad": AlgorithmEntry(algorithms.cagrad, {"c": 0.4}),
    "mgda": AlgorithmEntry(algorithms.mgda),
    "nash_mtl": AlgorithmEntry(algorithms.nash_mtl),
    "imtl_g": AlgorithmEntry(algorithms.imtl_g),
    "famo": AlgorithmEntry(algorithms.famo, {"rate": 0.025, "decay": 0.001}, needs_clients=True),
    "dwa": AlgorithmEntry(algorithms.dwa, {"temperature": 2.0}, needs_clients=True),
    "uncertainty": AlgorithmEntry(algorithms.uncertainty, {"rate": 0.025}, needs_clients=True),
    "grad_norm": AlgorithmEntry(algorithms.grad_norm, {"asymmetry": 1.5, "rate": 0.025}, needs_clients=True),
    "clustered": AlgorithmEntry(
        algorithms.clustered, {"stationary": 0.25, "moving": 0.25, "threshold": 0.0}, needs_clients=True
    ),
    "fedhca2": AlgorithmEntry(
        algorithms.fedhca2,
        {"c": 0.4, "start": 0.1, "hyper_rate": 0.01, "decoders": algorithms.DECODERS},
        needs_clients=True,
    ),
    "fedbone": AlgorithmEntry(algorithms.fedbone, {"personal": HEAD}),
    "mat_fl": AlgorithmEntry(algorithms.mat_fl, {"personal": HEAD, "threshold": 0.0}, needs_clients=True),
    "matu": AlgorithmEntry(algorithms.matu, needs_clients=True),
    "mocha": AlgorithmEntry(algorithms.mocha, {"strength": 0.01, "ridge": 0.1}, needs_clients=True),
    "moon": AlgorithmEntry(_moon, {"mu": 1.0, "temperature": 0.5}, takes="features"),
    "feddf": AlgorithmEntry(_feddf, {"server_rate": 1e-3, "server_steps": 8}, takes="logits"),
    "local": AlgorithmEntry(independent),
    "centralised": AlgorithmEntry(_centralised),
}
ALGORITHMS: Catalog[AlgorithmEntry] = Catalog("algorithm", _ALL, BadFederation)
BASELINES = ("local", "centralised")


def read_options(
    assignments: Mapping[str, str], part: str, defaults: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """{"algorithm.mu": "0.1", ...} over defaults -> all options of a part, each of the type of its default.

    assignments: of all parts of the run.  A default of None stands for a whole number or nothing, () for whole numbers
    with commas between them.  Raises BadFederation.
    """
    options = dict(defaults)
    for target, text in assignments.items():
        if not target.startswith(f"{part}."):
            continue
        name = target.removeprefix(f"{part}.")
        if name not in defaults:
            raise BadFederation(f"{what} has no option '{name}'{did_you_mean(name, defaults)}.")
        default = defaults[name]
        if default == ():
            options[name] = tuple(typed(part, int, f"{what}: {name}") for part in text.split(","))
            continue
        options[name] = typed(text, int | None if default is None else type(default), f"{what}: {name}")
        if part == "algorithm":
            check_range(name, options[name], what)
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


def outline(entry: AlgorithmEntry, options: Mapping[str, Any], trained: list[int] | None = None) -> Algorithm:
    """The algorithm of an entry without a model: for its shapes and for what it says of itself.

    trained: a list that takes the numbers of values that its clients train, when its work is traced.
    """

    def gradient(delta: Tree, batch: Tree, key: Any, whole: Whole = unchanged) -> tuple[Any, Tree]:
        if trained is not None:
            trained.append(_size(delta))
        return jnp.zeros(()), delta

    features = {"features": lambda delta, batch: jnp.zeros((1, 1))} if entry.takes == "features" else {}
    return entry.make(gradient, 1.0 if entry.plain_sgd else optax.sgd(1.0), **options, **features)


def check_fit(entry: AlgorithmEntry, options: Mapping[str, Any], delta: Tree) -> None:
    """Raise BadFederation for an algorithm whose parts are not in the delta."""
    if entry.needs == "lora":
        factors_of(delta)  # refuses a delta without any
    jax.eval_shape(outline(entry, options).init_server, delta)


def check_rates(adapter: Mapping[str, Any]) -> None:
    """Raise BadFederation for an adapter that trains in a way of its own, which local optimisers do not know."""
    if any(part["kind"] == "adalora" for _, part in parts_of(adapter)):
        raise BadFederation(
            "AdaLoRA gives out ranks along one run, which clients do not have in common: choose another --preset, such "
            "as lora."
        )
    if any(part["kind"] == "eva" for _, part in parts_of(adapter)):
        raise BadFederation(
            "EVA starts from the inputs of one run's first batches, which clients do not have in common: choose "
            "another --preset, such as lora."
        )
    if rate_of(adapter) is not None:
        raise BadFederation(
            "Clients train all arrays at one rate, and this adapter has others for some (b_rate of LoRA+, or constants "
            "as in PiSSA): set b_rate=1, or choose another --preset, such as lora."
        )


def check_gradient_alone(name: str, entry: AlgorithmEntry, options: Mapping[str, Any]) -> None:
    """Raise BadFederation for an algorithm that patient-level privacy does not cover, see ``Algorithm.reads``."""
    options = dict(options) | ({"clients": 1} if entry.needs_clients else {})
    if reads := outline(entry, options).reads:
        raise BadFederation(
            f"Patient-level privacy puts noise on one gradient per local step, and {name} also takes {reads}: choose "
            "another --algorithm, such as fedavg, scaffold, fedper or flexlora."
        )


def noised_numbers(
    entry: AlgorithmEntry, options: Mapping[str, Any], delta: Tree, unit: Literal["client", "patient"]
) -> int:
    """Numbers that are clipped and noised together: those of an upload, or of a gradient with unit patient."""
    trained: list[int] = []
    algorithm = outline(entry, options, trained)
    work = Shard(jnp.zeros((1, 1)), jnp.ones(())), jnp.ones(1, bool), jax.random.key(0)
    upload = jax.eval_shape(algorithm.client_update, *first_shapes(algorithm, delta), *work)[1].upload
    return max(trained) if unit == "patient" else _size(upload)


def _size(tree: Tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
