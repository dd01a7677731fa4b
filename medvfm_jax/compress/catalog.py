"""Every method of compression by name; a new one is a file with a ``TRANSFORM`` and a line here."""

from medvfm_jax.catalog import Catalog
from medvfm_jax.compress import (
    grouped_activations,
    integers,
    low_rank,
    prune,
    token_merging,
    trained_integers,
    weight_only,
)
from medvfm_jax.compress.record import ParamTransform
from medvfm_jax.types import MedvfmError


class UnknownMethod(MedvfmError, ValueError):
    """A name of a method of compression that does not exist."""


METHODS: Catalog[ParamTransform] = Catalog(
    "method of compression",
    {
        "weight_only": weight_only.TRANSFORM,
        "integers": integers.TRANSFORM,
        "trained_integers": trained_integers.TRANSFORM,
        "grouped_activations": grouped_activations.TRANSFORM,
        "low_rank": low_rank.TRANSFORM,
        "prune": prune.TRANSFORM,
        "token_merging": token_merging.TRANSFORM,
    },
    UnknownMethod,
)
