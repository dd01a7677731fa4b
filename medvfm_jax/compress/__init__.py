"""Compression of trained models: methods by name, and what they are made of."""

from medvfm_jax.compress.calibration import Calibration, OutOfRange
from medvfm_jax.compress.catalog import METHODS, UnknownMethod
from medvfm_jax.compress.record import Compressed, ParamTransform, Subject
from medvfm_jax.compress.run import AlreadyCompressed, CompressResult, compress

__all__ = [
    "METHODS",
    "AlreadyCompressed",
    "Calibration",
    "CompressResult",
    "Compressed",
    "OutOfRange",
    "ParamTransform",
    "Subject",
    "UnknownMethod",
    "compress",
]
