"""Every method of compression by name; a new one is a file with a ``TRANSFORM`` and a line here."""

from medvfm_jax.catalog import Catalog
from medvfm_jax.compress import integers, low_rank, prune, token_merging, weight_only
from medvfm_jax.compress.record import ParamTransform
from medvfm_jax.types import MedvfmError


class UnknownMethod(MedvfmError, ValueError):
    """A name of a method of compression that does not exist."""


METHODS: Catalog[ParamTransform] = Catalog(
    "method of compression",
    {
        "weight_only": weight_only.TRANSFORM,
        "integers": integers.TRANSFORM,
        "low_rank": low_rank.TRANSFORM,
        "prune": prune.TRANSFORM,
        "token_merging": token_merging.TRANSFORM,
    },
    UnknownMethod,
)
