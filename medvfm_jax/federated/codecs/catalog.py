"""Every codec by name, with what is guaranteed about it.

``make_codec("top_k", fraction=0.05)`` builds one; ``guarantee("top_k", update, fraction=0.05)`` states its constants
for an update of these shapes, from which step sizes follow (``feedback.diana_rate``, ``feedback.ef21_step``).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from medvfm_jax.catalog import Catalog, did_you_mean
from medvfm_jax.federated.codecs.compose import InvalidCodec, identity
from medvfm_jax.federated.codecs.low_rank import powersgd
from medvfm_jax.federated.codecs.one_bit import drive, scaled_sign
from medvfm_jax.federated.codecs.quantise import int4, int8, natural, qsgd, uniform
from medvfm_jax.federated.codecs.rotation import block_size, rotated
from medvfm_jax.federated.codecs.sketch import count_sketch
from medvfm_jax.federated.codecs.sparse import kept, rand_k, top_k
from medvfm_jax.federated.core.records import Codec, Tree


class Guarantee(NamedTuple):
    """Constants that hold for every update of given shapes, in expectation over the key.

    Attributes:
        omega: the codec is unbiased and E|Q(x) - x|^2 <= omega |x|^2; None for a biased codec.
        delta: E|C(x) - x|^2 <= (1 - delta) |x|^2, where C is the codec itself if it is biased, and ``scaled(codec, 1
            / (1 + omega))`` if it is not; 0 or less where no contraction is known.
    """

    omega: float | None
    delta: float


class CodecEntry(NamedTuple):
    """A codec of the catalogue.

    Attributes:
        make: (**options) -> Codec.
        options: names and defaults of the options.
        guarantee: (d, **options) -> ``Guarantee`` for a vector of d >= 1 entries.
        whole: whether the constants are those of the whole update as one vector, not of its worst leaf.
    """

    make: Callable[..., Codec]
    options: dict[str, Any]
    guarantee: Callable[..., Guarantee]  # (d, **options)
    whole: bool = False  # sees the update as one vector instead of leaf by leaf


def make_codec(name: str, **options: Any) -> Codec:
    """Build a codec of ``CODECS``.

    Args:
        name: of ``CODECS``.
        options: of the codec; those not given have the catalogue's defaults.

    Returns:
        The codec.

    Raises:
        InvalidCodec: an unknown name or option, or a value with which the codec cannot work.
    """
    entry = _entry(name, options)
    return entry.make(**entry.options | options)


def guarantee(name: str, like: Tree, **options: Any) -> Guarantee:
    """Constants of a codec of ``CODECS`` for updates of the shapes of ``like``: those of its worst leaf.

    Args:
        name: of ``CODECS``.
        like: pytree of arrays or shapes, the update of one client.
        options: of the codec; those not given have the catalogue's defaults.

    Returns:
        The constants.

    Raises:
        InvalidCodec: an unknown name or option.
    """
    entry = _entry(name, options)
    sizes = [x.size for x in jax.tree.leaves(like) if x.size]
    sizes = [sum(sizes)] if entry.whole else sizes
    each = [entry.guarantee(d, **entry.options | options) for d in sizes] or [_unbiased(0.0)]
    omegas = [g.omega for g in each if g.omega is not None]
    return Guarantee(max(omegas) if omegas else None, min(g.delta for g in each))


def _entry(name: str, options: dict[str, Any]) -> CodecEntry:
    entry = CODECS[name]
    for option in options:
        if option not in entry.options:
            raise InvalidCodec(f"codec {name} has no option '{option}'{did_you_mean(option, entry.options)}.")
    return entry


def _unbiased(omega: float) -> Guarantee:
    return Guarantee(omega, 1 / (1 + omega))


def _rand_k(d: int, fraction: float) -> Guarantee:
    return _unbiased(d / kept(fraction, d) - 1)


def _uniform(d: int, bits: int) -> Guarantee:
    return _unbiased(0.0 if d == 1 else d / (2 * (2**bits - 1) ** 2))


def _qsgd(d: int, levels: int) -> Guarantee:
    return _unbiased(0.0 if d == 1 else min(d / levels**2, math.sqrt(d) / levels))


def _rotated(d: int, bits: int, largest_block: int) -> Guarantee:
    block = block_size(d, 64 / bits, 1, largest_block)
    return _unbiased(min(block / 2, 2 * math.log(2 * block) + 2) / (2**bits - 1) ** 2)


def _drive(d: int, exact_along: bool, rounds: int, largest_block: int) -> Guarantee:
    """Khintchine's inequality, E|y_i| >= |x| / sqrt(2 B) for random signs, bounds the error of the least squares.

    No constant is proven for the other scale, whose error is |x|^2 (B |x|^2 / |y|_1^2 - 1).
    """
    del d, rounds, largest_block
    return Guarantee(None, 0.0 if exact_along else 0.5)


def _count_sketch(d: int, rows: int, columns: int, seed: int | None) -> Guarantee:
    """With a seed that everybody knows, the collisions are always the same: neither unbiased nor a contraction."""
    del rows
    return _unbiased((d - 1) / columns) if seed is None else Guarantee(None, -math.inf)


_ALL: dict[str, CodecEntry] = {
    "identity": CodecEntry(identity, {}, lambda d: _unbiased(0.0)),
    "top_k": CodecEntry(
        top_k, {"fraction": 0.01}, lambda d, fraction: Guarantee(None, kept(fraction, d) / d)
    ),
    "rand_k": CodecEntry(rand_k, {"fraction": 0.01}, _rand_k),
    "uniform": CodecEntry(uniform, {"bits": 8}, _uniform),
    "int8": CodecEntry(int8, {}, lambda d: _uniform(d, 8)),
    "int4": CodecEntry(int4, {}, lambda d: _uniform(d, 4)),
    "qsgd": CodecEntry(qsgd, {"levels": 16}, _qsgd),
    "natural": CodecEntry(natural, {}, lambda d: _unbiased(1 / 8)),
    "scaled_sign": CodecEntry(scaled_sign, {}, lambda d: Guarantee(None, 1 / d)),
    "powersgd": CodecEntry(powersgd, {"rank": 4}, lambda d, rank: Guarantee(None, 0.0)),
    "count_sketch": CodecEntry(
        count_sketch,
        {"rows": 5, "columns": 1000, "seed": None},
        _count_sketch,
        whole=True,
    ),
    "rotated": CodecEntry(rotated, {"bits": 4, "largest_block": 4096}, _rotated),
    "drive": CodecEntry(drive, {"exact_along": True, "rounds": 2, "largest_block": 4096}, _drive),
}
CODECS: Catalog[CodecEntry] = Catalog("codec", _ALL, InvalidCodec)
