"""A federation of three sites in memory: the bytes are real, the network is a function that tests can break."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import codecs
from medvfm_jax.federated.codecs.feedback import error_feedback
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Codec, Privacy, Server, Shard, Tree
from medvfm_jax.federated.network.agreement import Agreement
from medvfm_jax.federated.network.coordinator import Coordinator, Progress, RoundRecord, make_coordinator
from medvfm_jax.federated.network.session import Transport
from medvfm_jax.federated.network.site import Site, make_site
from medvfm_jax.federated.rounds.federation import make_round
from tests.federated.cases import STEPS, data, delta, loss
from tests.federated.quadratics import quick_jit

SITES = ("north", "east", "south")
NODES = {site: 1000 + 7 * i for i, site in enumerate(SITES)}
KEY = jax.random.key(7)
Tamper = Callable[[str, bytes], bytes | str | None]


def rows(tree: Tree, index: object) -> Tree:
    return jax.tree.map(lambda x: x[index], tree)


def cohort_data() -> Shard:
    return rows(data(), slice(len(SITES)))


def agreement(algorithm: Algorithm, codec: Codec | None = None, **settings: object) -> Agreement:
    codecs = {} if codec is None else {"codec": codec}
    return Agreement(algorithm, delta(), rows(data(), 0), settings=settings, **codecs)


def scaffold_agreement() -> Agreement:
    """Control variates and error feedback: both are kept at the sites, and lost if a site is not treated well."""
    return agreement(alg.scaffold(gradient_of(loss), 0.05), error_feedback(codecs.top_k(0.5)))


class Loopback:
    """Three sites and a server; ``tamper`` may change, delay or swallow what a site answers."""

    def __init__(
        self,
        agreement: Agreement,
        folder: Path,
        shards: Callable[[int, int], Any] | None = None,
        **options: Any,
    ):
        self.agreement, self.folder = agreement, folder
        shards = shards or (lambda row, round_: (rows(data(), row), STEPS))
        self.answers = {
            NODES[site]: make_site(Site(agreement, site, lambda r, row=row: shards(row, r), folder / site))
            for row, site in enumerate(SITES)
        }
        options = {"largest_weight": math.inf, "nodes": NODES} | options
        self.coordinator: Coordinator = make_coordinator(agreement, SITES, **options)

    def deliver(self, messages: Mapping[int, bytes], tamper: Tamper | None = None) -> dict[int, bytes | str]:
        names = {node: site for site, node in NODES.items()}
        replies = {node: self.answers[node](node, request) for node, request in messages.items()}
        if tamper is not None:
            replies = {node: tamper(names[node], reply) for node, reply in replies.items()}
        return {node: reply for node, reply in replies.items() if reply is not None}

    def transport(self, tamper: Tamper | None = None) -> Transport:
        return Transport(lambda: list(self.answers), lambda messages, seconds: self.deliver(messages, tamper))

    def round(
        self, progress: Progress, tamper: Tamper | None = None, sites: tuple[str, ...] = SITES
    ) -> tuple[Progress, RoundRecord]:
        request = self.coordinator.ask(progress, {site: NODES[site] for site in sites})
        return self.coordinator.finish(progress, request, self.deliver(request.messages, tamper))


def simulate(
    agreement: Agreement,
    privacy: Privacy | None,
    schedule: list[list[bool]],
    shards: list[Shard] | None = None,
) -> tuple[Server, list]:
    """The simulator's server after one round per row of ``schedule`` (who arrived), and the metrics of all rounds."""
    federation = make_round(agreement.algorithm, agreement.codec, privacy, backend="loop")
    shards = shards or [cohort_data()] * len(schedule)
    server, clients = federation.init(agreement.delta, shards[0])
    step, every = quick_jit(federation.round), []
    for shard, arrived in zip(shards, schedule):
        steps, gone = np.full(len(SITES), STEPS), ~np.asarray(arrived)
        server, clients, metrics = step(server, clients, shard, np.ones(len(SITES), bool), steps, KEY, gone)
        every.append(jax.device_get(metrics))
    return jax.device_get(server), every
