"""Memory that makes compression exact in the end: error feedback, EF21, DIANA, and compression both ways.

Each takes a codec and returns a codec, so a round needs to know nothing about it.  Write C for the inner codec and
u for the client's update (a gradient, or the difference its local steps made):

====================  ==============================  =========================  ===========================
                      sent                            received                   memory afterwards
====================  ==============================  =========================  ===========================
``error_feedback``    C(u + e)                        C(u + e)                   e <- u + e - C(u + e)
``ef21``              C(u - g)                        g + C(u - g)               g <- g + C(u - g)
``diana``             Q(u - h)                        h + Q(u - h)               h <- h + alpha Q(u - h)
====================  ==============================  =========================  ===========================

EF21 and DIANA are exact for clients that differ, because what is compressed goes to zero.  Their receiver keeps the
same memory as the client: in the message it is ``Known``, which costs no bits; over a network the receiver fills it in
(``unpack(..., known=[memory])``) and moves it on with ``follow``.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import require
from medvfm_jax.federated.codecs.wire import Known
from medvfm_jax.federated.core.records import Codec, Tree


class Residual(NamedTuple):
    """State of a codec with memory: of the inner codec, and the memory, of the update's shapes."""

    inner: Tree
    memory: Tree


class Increment(NamedTuple):
    """What the receiver holds already, and the compressed difference to the update."""

    memory: Known
    change: Tree


def error_feedback(codec: Codec) -> Codec:
    """Add what was not sent to the next update (Seide et al. 2014; Karimireddy et al. 2019).

    For contractions; scale an unbiased codec by 1 / (1 + omega) first.  Step sizes must be O(delta / L): the residual
    is about (1 / delta) updates large and arrives late.

    References:
        Seide et al. 2014, https://doi.org/10.21437/Interspeech.2014-274
        Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847
    """

    def init(update: Tree) -> Residual:
        return Residual(codec.init(update), _zeros(update))

    def encode(key: Array, state: Residual, update: Tree) -> tuple[Tree, Residual]:
        wanted = jax.tree.map(jnp.add, update, state.memory)
        message, inner = codec.encode(key, state.inner, wanted)
        missed = jax.tree.map(jnp.subtract, wanted, codec.decode(message, update))
        return message, Residual(inner, missed)

    return Codec(init, encode, codec.decode)


def ef21(codec: Codec) -> Codec:
    """Compress the change of the update since the last estimate (Richtarik et al. 2021); see ``ef21_step``.

    For contractions with delta > 0.  Linear convergence under the Polyak-Lojasiewicz condition without any bound on
    how much clients differ.

    References:
        Richtarik et al. 2021, https://arxiv.org/abs/2106.05203
    """
    return _tracking(codec, 1.0)


def diana(codec: Codec, alpha: float) -> Codec:
    """Compress the distance to a slowly learned shift (Mishchenko et al. 2019); alpha <= ``diana_rate(omega)``.

    For unbiased codecs; what is received is unbiased too.  alpha = 0 never learns: plain compressed descent, whose
    error stays proportional to the clients' own gradients at the optimum.

    References:
        Mishchenko et al. 2019, https://arxiv.org/abs/1901.09269
    """
    require(0 <= alpha <= 1, "diana", "alpha", alpha, "0 <= alpha <= 1")
    return _tracking(codec, alpha)


def diana_rate(omega: float) -> float:
    """Largest rate of DIANA's shift for a codec of variance omega: 1 / (1 + omega)."""
    return 1 / (1 + omega)


def ef21_step(smoothness: float, mean_smoothness: float, delta: float) -> float:
    """Largest step of EF21 in the theory (theorem 1): 1 / (L + L~ sqrt(beta / theta)).

    smoothness L of the mean function, mean_smoothness L~ = sqrt(mean of L_i^2), delta in (0, 1] of the codec;
    theta = 1 - sqrt(1 - delta), beta = (1 - delta) / theta.  For the linear rate 1 - step mu under the
    Polyak-Lojasiewicz condition (theorem 2), take sqrt(2) L~ and stay below theta / (2 mu).
    """
    require(0 < delta <= 1, "ef21", "delta", delta, "0 < delta <= 1")
    theta = 1 - math.sqrt(1 - delta)
    beta = (1 - delta) / theta
    return 1 / (smoothness + mean_smoothness * math.sqrt(beta / theta))


def follow(codec: Codec, message: Increment, like: Tree, alpha: float = 1.0) -> Tree:
    """The receiver's memory after a message, equal to the sender's; alpha = 1 for EF21.  ``codec`` is the inner one."""
    change = codec.decode(message.change, like)
    return jax.tree.map(lambda m, c: m + jnp.asarray(alpha, m.dtype) * c, message.memory.values, change)


def compressed_step(
    codec: Codec, key: Array, state: Tree, before: Tree, after: Tree
) -> tuple[Tree, Tree, Tree]:
    """The server wants to go from ``before`` to ``after``, and goes where the clients will be: (delta, message, state).

    Call it after the algorithm's ``aggregate``; the state begins as ``codec.init(before)``.  Clients add
    ``codec.decode(message, delta)`` to the delta they hold, so theirs and the server's stay the same.  A client
    that was absent has missed messages and must be sent the whole delta: count 32 bits per entry for it.
    """
    message, state = codec.encode(key, state, jax.tree.map(jnp.subtract, after, before))
    delta = jax.tree.map(jnp.add, before, codec.decode(message, before))
    return delta, message, state


def _tracking(codec: Codec, alpha: float) -> Codec:
    def init(update: Tree) -> Residual:
        return Residual(codec.init(update), _zeros(update))

    def encode(key: Array, state: Residual, update: Tree) -> tuple[Increment, Residual]:
        change, inner = codec.encode(key, state.inner, jax.tree.map(jnp.subtract, update, state.memory))
        message = Increment(Known(state.memory), change)
        return message, Residual(inner, follow(codec, message, update, alpha))

    def decode(message: Increment, like: Tree) -> Tree:
        return follow(codec, message, like)

    return Codec(init, encode, decode)


def _zeros(update: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), update)
