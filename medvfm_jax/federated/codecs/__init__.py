"""Compression of client updates on the wire: what is sent, how many bits it takes, and its bytes."""

from medvfm_jax.federated.codecs.catalog import CODECS, CodecEntry, Guarantee, guarantee, make_codec
from medvfm_jax.federated.codecs.compose import InvalidCodec, flattened, identity, leafwise, scaled, seeded
from medvfm_jax.federated.codecs.low_rank import powersgd
from medvfm_jax.federated.codecs.one_bit import drive, scaled_sign
from medvfm_jax.federated.codecs.quantise import int4, int8, natural, qsgd, uniform
from medvfm_jax.federated.codecs.rotation import hadamard, rotated
from medvfm_jax.federated.codecs.sketch import count_sketch
from medvfm_jax.federated.codecs.sparse import rand_k, top_k
from medvfm_jax.federated.codecs.wire import (
    Codes,
    Known,
    WireError,
    bits,
    message_bits,
    message_shapes,
    pack,
    unpack,
)

__all__ = [
    "CODECS",
    "CodecEntry",
    "Codes",
    "Guarantee",
    "InvalidCodec",
    "Known",
    "WireError",
    "bits",
    "count_sketch",
    "drive",
    "flattened",
    "guarantee",
    "hadamard",
    "identity",
    "int4",
    "int8",
    "leafwise",
    "make_codec",
    "message_bits",
    "message_shapes",
    "natural",
    "pack",
    "powersgd",
    "qsgd",
    "rand_k",
    "rotated",
    "scaled",
    "scaled_sign",
    "seeded",
    "top_k",
    "uniform",
    "unpack",
]
