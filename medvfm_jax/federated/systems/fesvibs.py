"""FeSViBS: a transformer split between hospitals and server, trained from the tokens of a block drawn anew each step.

Source: Almalik et al. 2023, "FeSViBS: Federated Split Learning of Vision Transformer with Block Sampling" (MICCAI).
A client runs the patch embedding and the classifier, the server all blocks.  In every step the server draws a block,
distils its patch tokens into a pseudo class token with a shared projection network and sends that back.
Interpretation: the projection is a residual two-layer perceptron over tokens and then their mean; all clients' steps of
a round run in parallel on copies of the server's part, which are averaged as the clients' parts are (SplitFed, first
variant), so that a round is FedAvg on this loss and only its traffic differs: ``split_bits`` instead of the delta's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.adapters import tap
from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.local_training import Loss
from medvfm_jax.federated.records import Algorithm, Tree
from medvfm_jax.federated.systems.fedpft import BLOCKS
from medvfm_jax.federated.systems.layers import natural_order

TokensOf = Callable[[Tree, Array], Array]  # (delta, image (S, S, 3)) -> tokens of every block (L, n, d)
PROJECTION, CLASSIFIER = "projection", "classifier"


def fesvibs(tokens_of: TokensOf, optimizer: optax.GradientTransformation) -> Algorithm:
    """FedAvg on ``block_sampling_loss``; the delta is {"projection", "classifier", parts that tokens_of reads}."""
    return fedavg(block_sampling_loss(tokens_of), optimizer)


def block_sampling_loss(tokens_of: TokensOf) -> Loss:
    """Loss of (images (B, S, S, 3), labels (B,) int): cross-entropy from one block, the same for the whole batch.

    Blocks after the drawn one get no gradient.
    """

    def loss(delta: Tree, batch: tuple[Array, Array], key: Array) -> Array:
        images, labels = batch
        tokens = jax.vmap(lambda image: tokens_of(delta, image))(images)  # (B, L, n, d)
        drawn = jax.random.randint(key, (), 0, tokens.shape[1])
        logits = classify(delta, jax.lax.dynamic_index_in_dim(tokens, drawn, 1, keepdims=False))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def classify(delta: Tree, tokens: Array) -> Array:
    """Patch tokens of a block (..., n, d) -> logits (..., classes); the last block at inference."""
    classifier = delta[CLASSIFIER]
    return pseudo_class_token(delta[PROJECTION], tokens) @ classifier["kernel"] + classifier["bias"]


def pseudo_class_token(projection: Tree, tokens: Array) -> Array:
    """Patch tokens (..., n, d) -> (..., d); at ``init_head`` their mean."""
    hidden = jax.nn.gelu(tokens @ projection["down"] + projection["down_bias"], approximate=False)
    return (tokens + hidden @ projection["up"] + projection["up_bias"]).mean(axis=-2)


def init_head(key: Array, width: int, hidden: int, classes: int) -> Tree:
    """Parts "projection" and "classifier" of the delta for tokens of ``width`` features; "up" is zero."""
    one, two = jax.random.split(key)
    projection = {
        "down": jax.random.normal(one, (width, hidden)) * width**-0.5,
        "down_bias": jnp.zeros(hidden),
        "up": jnp.zeros((hidden, width)),
        "up_bias": jnp.zeros(width),
    }
    classifier = {
        "kernel": jax.random.normal(two, (width, classes)) * width**-0.5,
        "bias": jnp.zeros(classes),
    }
    return {PROJECTION: projection, CLASSIFIER: classifier}


def block_tokens(apply_fn: Callable, blocks: str = BLOCKS, first_patch: int = 1) -> Callable[..., Array]:
    """``tokens(params, image)`` (L, n, d): patch tokens after every block, without the first ``first_patch`` ones.

    For blocks of equal width on tokens (n, d), those of a plain ViT; wrap ``apply_fn`` by an adapter to train it.
    """

    def tokens(*inputs: Tree) -> Array:
        _, taps = tap(apply_fn, blocks)(*inputs)
        return jnp.stack([taps[name][first_patch:] for name in sorted(taps, key=natural_order)])

    return tokens


def split_bits(tokens: int, width: int, images: int, bits: int = 32) -> int:
    """Bits one client and the server exchange for one step on ``images`` images.

    Patch embeddings up and their gradients down (tokens x width), pseudo class tokens down and their gradients up.
    """
    return 2 * images * (tokens + 1) * width * bits
