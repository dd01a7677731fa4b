"""FeSViBS: a transformer split between hospitals and server, trained from the tokens of a block drawn every round.

Source: Almalik et al. 2023, "FeSViBS: Federated Split Learning of Vision Transformer with Block Sampling" (MICCAI).
A client runs the patch embedding and the tail, which are its own; the server the blocks up to the drawn one and a
projection of its tokens.  Patches go up and the tail's input comes down, gradients the other way.
As in its code (faresmalik/FeSViBS, models.py and FeSViBS.py): a client's block is drawn once per round, from 1 to 6
unless asked otherwise, and its model is tested with that block; the projection is a residual pair of 3 x 3
convolutions, normalised; blocks are averaged with equal weights.

Interpretation for segmentation, where the release classifies: the projection keeps the map of tokens (h, w, d), which
the release averages over positions to a pseudo class token, and has no last ReLU, so that a pretrained neck sees at the
start what it was trained on; the encoder's neck follows at the server, and the tail is the mask decoder.
Interpretation: normalisation over the positions of an image in the place of batch statistics, no dropout; clients
train in parallel on copies of the server's part, so projection and neck are averaged too, where the code trains one in
turn.  A client that never took part, and a site outside the federation, leaves after the last block that may be drawn.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.algorithms.averaging import AveragingState
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import join_personal, leaf_name, split_like, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, subtract
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.systems import System
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import Batch, ModelSpec

WEIGHTS, EXIT, PROJECTION = "weights", "exit", "projection"
LAST_BLOCK = 6
PATCH_EMBED = "image_encoder/patch_embed"
_OPEN = re.compile(rf"{EXIT}/image_encoder/blocks_(\d+)/open")
OWN = rf"{WEIGHTS}/({PATCH_EMBED}|mask_decoder)/.*|{_OPEN.pattern}"


class SplitModel(NamedTuple):
    """The model in three parts; a client runs ``stem`` and ``tail``, the server ``blocks``.  All see the whole delta.

    stem(delta, images (B, S, S, 3)) -> patches (B, h, w, d).  blocks(delta, patches) -> embeddings (B, h, w, c).
    tail(delta, batch with embeddings as its images, key) -> loss ().
    """

    stem: Callable[[Tree, Array], Array]
    blocks: Callable[[Tree, Array], Array]
    tail: Callable[[Tree, Batch, Array], Array]


def fesvibs_parts(spec: ModelSpec) -> Parts:
    """Parts: all of encoder and mask decoder as increments, an exit at every block, the projection.

    Raises BadFederation for a model whose encoder is no plain ViT with a neck.
    """
    fitting = [name for name, entry in MODELS.items() if entry.family == "sam"]
    if spec.name not in fitting:
        raise BadFederation(
            f"fesvibs leaves the image encoder after a block drawn from equal ones, which that of {spec.name} does not "
            f"have before a mask decoder; choose --model from {', '.join(fitting)}."
        )
    return {
        WEIGHTS: {"kind": "tune", "at": r"(image_encoder|mask_decoder)/.*"},
        EXIT: {"kind": "block_exit", "at": r"image_encoder/blocks_\d+", "last": LAST_BLOCK},
        PROJECTION: {"kind": "residual_convolutions", "at": "image_encoder/neck_0"},
    }


def fesvibs(
    gradient: Gradient,
    optimizer: Optimizer,
    split: SplitModel | None = None,
    first_block: int = 1,
    last_block: int = LAST_BLOCK,
) -> Algorithm:
    """Split learning with a block drawn once per client and round; block numbers count from 1.

    split: executes each step as client and server do, and counts what crosses; None takes ``gradient``, which is the
    same.  A model with fewer blocks than ``last_block`` draws among those it has.  Raises BadFederation.
    """
    if not 1 <= first_block <= last_block:
        raise BadFederation(
            f"fesvibs: blocks from {first_block} to {last_block} are no range that starts at 1."
        )
    step_gradient = gradient if split is None else partial(split_gradient, split)

    def hold_exits(updates: Tree) -> Tree:
        return _map_open(updates, lambda x, number: jnp.zeros_like(x))

    def init_server(delta: Tree) -> tuple[Tree, AveragingState]:
        depth = len(_exits(delta))
        if depth < first_block:
            raise BadFederation(
                f"fesvibs: the delta has exits at {depth} blocks, so none can be drawn from {first_block} on; build it "
                "with fesvibs_parts for a model of that depth."
            )
        return split_personal(delta, OWN)[0], AveragingState((), _exits_only(leave_after(delta, last_block)))

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        draw_key, key = jax.random.split(key)
        most = min(last_block, len(_exits(own)))
        block = jax.random.randint(draw_key, (), first_block, most + 1, jnp.int32)
        start = join_personal(server.delta, leave_after(own, block))
        delta, seen, _ = local_steps(step_gradient, optimizer, start, shard, step_mask, key, mask=hold_exits)
        shared, kept = split_like(delta, server.delta)
        return kept, report(subtract(shared, server.delta), seen)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        return server._replace(delta=add(server.delta, mean))

    def model(server: Server, own: Tree) -> Tree:
        return join_personal(server.delta, server.state.frozen if own is None else own)

    def traffic(server: Server, own: Tree, shard: Shard) -> float:
        def crossing(delta: Tree, images: Array) -> tuple[Array, Array]:
            patches = split.stem(delta, images[0])
            return patches, split.blocks(delta, patches)

        start = join_personal(server.delta, own)
        return split_bits(*jax.eval_shape(crossing, start, shard.batches.image))

    return Algorithm(
        init_server,
        lambda delta, client_id: leave_after(split_personal(delta, OWN)[1], last_block),
        client_update,
        aggregate,
        traffic=None if split is None else traffic,
        weights="equal",
        model=model,
        reads="the patches of its images, which cross to the server",
    )


def split_gradient(split: SplitModel, delta: Tree, batch: Batch, key: Array) -> tuple[Array, Tree]:
    """One step as client and server execute it -> (loss, gradient of the delta).

    Neither side needs the other's parameters: the gradient of each part is zero in those of the others.
    """
    patches, stem_back = jax.vjp(lambda d: split.stem(d, batch.image), delta)
    # Here the patches cross to the server.
    embeddings, server_back = jax.vjp(split.blocks, delta, patches)
    # Here the embeddings cross to the client, which has prompts and labels.
    value, tail_back = jax.vjp(lambda d, e: split.tail(d, batch._replace(image=e), key), delta, embeddings)
    of_tail, of_embeddings = tail_back(jnp.ones_like(value))
    of_server, of_patches = server_back(of_embeddings)
    (of_stem,) = stem_back(of_patches)
    return value, jax.tree.map(lambda *parts: sum(parts), of_tail, of_server, of_stem)


def split_bits(patches: Any, embeddings: Any) -> float:
    """Bits that one client sends in one step, and as many receives: patches and gradients of embeddings, and back."""
    return float(sum(8 * math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in (patches, embeddings)))


def leave_after(delta: Tree, block: Array | int) -> Tree:
    """The delta with blocks number 1 to ``block`` () open and the later ones closed."""
    return _map_open(delta, lambda x, number: jnp.full_like(x, number <= block))


def _exits(delta: Tree) -> list[Array]:
    return jax.tree.leaves(_exits_only(delta))


def _exits_only(delta: Tree) -> Tree:
    return split_personal(delta, _OPEN.pattern)[1]


def _map_open(tree: Tree, change: Callable[[Array, int], Array]) -> Tree:
    """Change what opens a block, given the block's number; other leaves stay."""

    def changed(path: tuple, leaf: Array) -> Array:
        found = _OPEN.fullmatch(leaf_name(path))
        return leaf if found is None else change(leaf, int(found[1]) + 1)

    return jax.tree.map_with_path(changed, tree)


SYSTEM = FederatedSystem(
    System(
        description="the encoder's blocks at the server, left after one drawn anew for every client and round; patch "
        "embedding and mask decoder at the client (FeSViBS, Almalik et al. 2023)",
        source="https://arxiv.org/abs/2306.14638",
        adapter=fesvibs_parts,
        differences="Published for classification: here the projection keeps the map of tokens and the tail is the "
        "mask decoder; clients train in parallel on copies of the server's part; SAM's ViT encoders only.",
    ),
    fesvibs,
)
