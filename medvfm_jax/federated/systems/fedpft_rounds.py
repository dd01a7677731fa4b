"""FedPFT as an algorithm of rounds: clients train the proxy, the server keeps the full model and chooses neurons anew.

Source: Peng et al. 2024, "FedPFT: Federated Proxy Fine-Tuning of Foundation Models" (IJCAI): the proxy keeps attention
and norms and the strongest neurons of every feed-forward network, those with the largest |(W1[:, j], W2[j, :])|_2.
The proxy is simulated in the full model: neurons that were cut have no way out (their rows of W2 are zero) and nothing
of them moves, which gives the numbers of a client that has only the proxy.  What is sent is the proxy's size.
Of the paper's two alignments there is the one without data: between rounds what was learnt is plugged into the full
model, and the strongest neurons of that are chosen.  The distillation of the proxy's layers from those of the full
model (relative errors of block outputs and of W1 W2, before the federation) is not there: the proxy starts with the
full model's neurons as they are.
"""

import re

import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.parameter_paths import node_at
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, select, subtract
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import System
from medvfm_jax.systems.places import tuned
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec, Params

PART = "proxy"
_TRAINED = r"(image_encoder|mask_decoder)/.*"
_FIRST = re.compile(r"(image_encoder/.*)/(lin|fc)1")

Selection = dict[str, Array]  # path of a feed-forward network -> numbers of its kept neurons (k,), ascending
Networks = dict[str, tuple[str, str]]  # path of a feed-forward network -> modules of W1 and W2


def fedpft_parts(spec: ModelSpec) -> Parts:
    """Parts: every parameter of encoder and mask decoder as an increment."""
    del spec
    return {PART: tuned(_TRAINED)}


def fedpft(
    gradient: Gradient,
    optimizer: Optimizer,
    params: Params | None = None,
    keep: float = 0.5,
    realign_every: int = 1,
) -> Algorithm:
    """FedAvg of the proxy with the share ``keep`` of the neurons of every feed-forward network of the encoder.

    params: the frozen weights that the delta is added to; None only to learn shapes.  After ``realign_every`` rounds
    the neurons with the largest |(W1[:, j], W2[j, :])|_2 are chosen again.  Raises BadFederation.
    """
    if not 0 < keep <= 1 or realign_every < 1:
        raise BadFederation(
            f"fedpft: keep must be above 0 and at most 1 and realign_every at least 1, not {keep} and {realign_every}."
        )

    def choose(delta: Tree) -> Selection:
        found = {}
        for path, (one, two) in _networks(delta).items():
            first, second = (_whole(params, delta, module) for module in (one, two))
            strength = (first**2).sum(0) + (second**2).sum(1)
            count = max(1, round(keep * strength.shape[0]))
            found[path] = jnp.sort(jnp.argsort(-strength, stable=True)[:count])
        return found

    def client_update(
        server: Server, own: tuple, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[tuple, Report]:
        start = _silenced(params, server.delta, server.state)

        def of_proxy(updates: Tree) -> Tree:
            return _spread(updates, _gathered(updates, server.state), server.state)

        delta, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key, mask=of_proxy)
        return own, report(_gathered(subtract(delta, start), server.state), seen, shard.samples)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        delta = add(server.delta, _spread(server.delta, mean, server.state))
        again = (server.round + 1) % realign_every == 0
        return server._replace(delta=delta, state=select(again, choose(delta), server.state))

    return Algorithm(
        lambda delta: (delta, choose(delta)),
        lambda delta, client_id: (),
        client_update,
        aggregate,
        download=lambda server: _gathered(server.delta, server.state),
    )


def _networks(delta: Tree) -> Networks:
    """The feed-forward networks of a delta {PART: {module: {"kernel", "bias"}}}; raises BadFederation."""
    modules = delta.get(PART, {})
    matches = [m for m in map(_FIRST.fullmatch, modules) if m and f"{m[1]}/{m[2]}2" in modules]
    if not matches:
        raise BadFederation(
            "fedpft: the encoder has no feed-forward network (lin1 and lin2, or fc1 and fc2) to cut."
        )
    if any(modules[m[0]]["kernel"].ndim != 2 for m in matches):
        raise BadFederation(
            "fedpft: feed-forward networks are stacked over blocks; build without scan_blocks."
        )
    return {m[1]: (m[0], f"{m[1]}/{m[2]}2") for m in matches}


def _whole(params: Params | None, delta: Tree, module: str) -> Array:
    kernel = delta[PART][module]["kernel"]
    return kernel if params is None else kernel + node_at(params["params"], module)["kernel"]


def _silenced(params: Params | None, delta: Tree, selection: Selection) -> Tree:
    """The delta with which rows of W2 of neurons that were cut are zero."""
    modules = dict(delta[PART])
    for path, (_, two) in _networks(delta).items():
        kernel = modules[two]["kernel"]
        gone = jnp.ones(kernel.shape[0], bool).at[selection[path]].set(False)
        base = 0 if params is None else node_at(params["params"], two)["kernel"]
        modules[two] = {
            **modules[two],
            "kernel": jnp.where(gone[:, None], -base, kernel).astype(kernel.dtype),
        }
    return {**delta, PART: modules}


def _gathered(tree: Tree, selection: Selection) -> Tree:
    """Of a tree of the full model what the proxy has."""
    modules = dict(tree[PART])
    for path, (one, two) in _networks(tree).items():
        kept = selection[path]
        first, second = modules[one], modules[two]
        modules[one] = {**first, "kernel": first["kernel"][:, kept], "bias": first["bias"][kept]}
        modules[two] = {**second, "kernel": second["kernel"][kept]}
    return {**tree, PART: modules}


def _spread(like: Tree, proxy: Tree, selection: Selection) -> Tree:
    """A tree of the proxy in the shapes of the full model, zero where neurons were cut."""
    modules = dict(proxy[PART])
    for path, (one, two) in _networks(like).items():
        kept, full = selection[path], like[PART]
        first, second = modules[one], modules[two]
        modules[one] = {
            **first,
            "kernel": jnp.zeros_like(full[one]["kernel"]).at[:, kept].set(first["kernel"]),
            "bias": jnp.zeros_like(full[one]["bias"]).at[kept].set(first["bias"]),
        }
        modules[two] = {
            **second,
            "kernel": jnp.zeros_like(full[two]["kernel"]).at[kept].set(second["kernel"]),
        }
    return {**proxy, PART: modules}


SYSTEM = FederatedSystem(
    System(
        description="clients tune a proxy with the strongest half of the encoder's feed-forward neurons, which are "
        "chosen anew between rounds (FedPFT, Peng et al. 2024)",
        source="https://arxiv.org/abs/2404.11536",
        adapter=fedpft_parts,
        differences="All parameters of the proxy are tuned; of the two alignments there is the choice of neurons "
        "between rounds, no distillation of layers on public images: the proxy starts with the full model's neurons as "
        "they are.",
    ),
    fedpft,
)
