"""FeSViBS: a transformer split between hospitals and server, trained from the tokens of a block drawn every round.

Source: Almalik et al. 2023, "FeSViBS: Federated Split Learning of Vision Transformer with Block Sampling" (MICCAI).
A client runs the patch embedding and the tail (norm and linear layer), which are its own; the server the blocks up to
the drawn one and a projection of its patch tokens to a pseudo class token.
As in its code (faresmalik/FeSViBS, models.py and FeSViBS.py): a client's block is drawn once per round, from 1 to 6
unless asked otherwise, and its model is tested with that block; the projection is a residual pair of 3 x 3
convolutions, normalised, then the mean over positions; blocks are averaged with equal weights.
Interpretation: normalisation over the positions of an image in the place of batch statistics, no dropout; clients
train in parallel on copies of the server's part, so the projection is averaged too, where the code trains one in turn.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.adapters import at, tap
from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.local_training import local_steps
from medvfm_jax.federated.personal_parts import join_personal, split_like, split_personal
from medvfm_jax.federated.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.systems.fedpft import BLOCKS
from medvfm_jax.federated.systems.layers import natural_order
from medvfm_jax.federated.tree_math import add, subtract

STEM, PROJECTION, TAIL = "stem", "projection", "tail"
OWN = rf"({STEM}|{TAIL})/.*"
PATCH_EMBED = r"image_encoder/patch_embed"


class SplitModel(NamedTuple):
    """A transformer cut after its patch embedding; ``stem`` runs at the client, ``blocks`` at the server.

    stem(delta, image) -> patches.  blocks(delta, patches) -> patch tokens after every block (L, h, w, d).
    """

    stem: Callable[[Tree, Array], Array]
    blocks: Callable[[Tree, Array], Array]


class OwnModel(NamedTuple):
    """What a client keeps: its parts of the delta, and the block () int32, from 1, of its last round."""

    delta: Tree
    block: Array


def fesvibs(
    model: SplitModel, optimizer: optax.GradientTransformation, first_block: int = 1, last_block: int = 6
) -> Algorithm:
    """Split learning of images (B, S, S, 3) with labels (B,) int; block numbers count from 1.

    The delta is {"projection", "tail" (``init_head``), "stem" if the patch embedding trains, other parts: the
    server's}.  A model with fewer blocks than ``last_block`` draws among those it has.  Raises BadFederation.
    """
    if not 1 <= first_block <= last_block:
        raise BadFederation(
            f"fesvibs: blocks from {first_block} to {last_block} are no range that starts at 1."
        )

    def client_update(
        server: Server, own: OwnModel, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[OwnModel, Report]:
        start = join_personal(server.delta, own.delta)
        images = jax.tree.map(lambda x: x[0], shard.batches)[0]
        depth = jax.eval_shape(lambda x: model.blocks(start, model.stem(start, x)), images[0]).shape[0]
        if first_block > depth:
            raise BadFederation(f"fesvibs: the model has {depth} blocks, so none from {first_block} on.")
        draw_key, key = jax.random.split(key)
        block = jax.random.randint(draw_key, (), first_block, min(last_block, depth) + 1, jnp.int32)

        def gradient(delta: Tree, batch: tuple[Array, Array], key: Array) -> tuple[Array, Tree]:
            del key
            return split_gradient(model, delta, batch, block)

        delta, value = local_steps(gradient, optimizer, start, shard, step_mask, key)
        shared, kept = split_like(delta, server.delta)
        report = Report(subtract(shared, server.delta), jnp.ones_like(value), value)
        return OwnModel(kept, block), report

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        return server._replace(delta=add(server.delta, mean))

    return Algorithm(
        lambda delta: (split_personal(delta, OWN)[0], ()),
        lambda delta, client_id: OwnModel(split_personal(delta, OWN)[1], jnp.int32(first_block)),
        client_update,
        aggregate,
    )


def split_gradient(
    model: SplitModel, delta: Tree, batch: tuple[Array, Array], block: Array
) -> tuple[Array, Tree]:
    """One step as client and server execute it -> (cross-entropy, gradient of the delta).

    Up go patches and, later, the gradient of the pseudo class tokens; down these tokens and the gradient of the
    patches: ``split_bits``.  Neither side needs the other's parameters.
    """
    images, labels = batch
    patches, client_back = jax.vjp(lambda d: jax.vmap(lambda x: model.stem(d, x))(images), delta)
    # Here the patches cross to the server.
    token, server_back = jax.vjp(lambda d, p: server_part(model, d, p, block), delta, patches)
    # Here the pseudo class tokens cross to the client, which has the labels.
    value, tail_back = jax.vjp(lambda d, t: cross_entropy(classify(d, t), labels), delta, token)
    of_tail, of_token = tail_back(jnp.ones_like(value))
    of_server, of_patches = server_back(of_token)
    (of_stem,) = client_back(of_patches)
    return value, jax.tree.map(lambda *parts: sum(parts), of_tail, of_server, of_stem)


def server_part(model: SplitModel, delta: Tree, patches: Array, block: Array) -> Array:
    """Patches (B, ...) -> pseudo class tokens (B, d) of block number ``block`` (), from 1."""
    tokens = jax.vmap(lambda p: model.blocks(delta, p))(patches)
    drawn = jax.lax.dynamic_index_in_dim(tokens, block - 1, 1, keepdims=False)
    return jax.vmap(lambda t: pseudo_class_token(delta[PROJECTION], t))(drawn)


def predict(model: SplitModel, delta: Tree, image: Array, block: Array) -> Array:
    """Logits (classes,) of one image, by the block of the client's last round."""
    return classify(delta, server_part(model, delta, model.stem(delta, image)[None], block)[0])


def classify(delta: Tree, token: Array) -> Array:
    """Pseudo class token (..., d) -> logits (..., classes)."""
    tail = delta[TAIL]
    normed = jax.nn.standardize(token, axis=-1, epsilon=1e-6) * tail["scale"] + tail["shift"]
    return normed @ tail["kernel"] + tail["bias"]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over images."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pseudo_class_token(projection: Tree, tokens: Array) -> Array:
    """Patch tokens of a block (h, w, d) -> (d,): relu(tokens + two convolutions of them), mean over positions."""
    hidden = jax.nn.relu(_normed(_conv(tokens, projection["first"])))
    hidden = _normed(_conv(hidden, projection["second"])) * projection["scale"] + projection["shift"]
    return jax.nn.relu(tokens + hidden).mean(axis=(-3, -2))


def init_head(key: Array, width: int, classes: int) -> Tree:
    """Parts "projection" and "tail" of the delta for tokens of ``width`` features; the convolutions begin silent."""
    first, second, last = jax.random.split(key, 3)

    def kernel(key: Array) -> Array:
        return jax.random.normal(key, (3, 3, width, width)) * (9 * width / 2) ** -0.5

    none = jnp.zeros(width)
    projection = {"first": kernel(first), "second": kernel(second), "scale": none, "shift": none}
    tail = {
        "scale": jnp.ones(width),
        "shift": none,
        "kernel": jax.random.normal(last, (width, classes)) * width**-0.5,
        "bias": jnp.zeros(classes),
    }
    return {PROJECTION: projection, TAIL: tail}


def split_model(
    apply_fn: Callable, image: tuple[int, int, int], blocks: str = BLOCKS, patch_embed: str = PATCH_EMBED
) -> tuple[Callable, Callable]:
    """Cut a plain ViT, or one wrapped by an adapter, after its patch embedding.

    image: shape (S, S, 3).  -> stem(*inputs, image) patches (h, w, d), and blocks(*inputs, patches) (L, h, w, d), the
    patch tokens after every block; ``inputs`` are those of ``apply_fn`` before the image.
    """
    injected = at(patch_embed, "around", lambda key, site: {}, lambda delta, call, x: delta["patches"])

    def stem(*inputs: Tree) -> Array:
        _, taps = tap(apply_fn, patch_embed)(*inputs)
        return taps[patch_embed]

    def server(*inputs: Tree) -> Array:
        params, *others, patches = inputs
        wrapped = injected.wrap(apply_fn, strict=False)
        slots = {patch_embed: {"patches": patches}}
        _, taps = tap(wrapped, blocks)(params, slots, *others, jnp.zeros(image, patches.dtype))
        h, w, _ = patches.shape
        kept = [taps[name][-h * w :] for name in sorted(taps, key=natural_order)]
        return jnp.stack([x.reshape(h, w, -1) for x in kept])

    return stem, server


def split_bits(tokens: int, width: int, images: int, bits: int = 32) -> int:
    """Bits one client and the server exchange for one step on ``images`` images.

    Patch embeddings up and their gradients down (tokens x width), pseudo class tokens down and their gradients up.
    """
    return 2 * images * (tokens + 1) * width * bits


def _conv(x: Array, kernel: Array) -> Array:
    out = jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out[0]


def _normed(x: Array) -> Array:
    return jax.nn.standardize(x, axis=(-3, -2), epsilon=1e-5)
