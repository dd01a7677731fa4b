"""Options of `medvfm compress`."""

from dataclasses import dataclass

import tyro

from medvfm_jax.settings.compress import CompressConfig


@dataclass(frozen=True)
class CompressArgs(CompressConfig):
    """Make a trained model smaller, or cheaper to run, without training it.

    Example: medvfm compress --model lite-medsam --method integers --data data/dsb2018 --out runs/w8a8

    The result is a run directory that holds the whole model: evaluate and segment take it like any other.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the method, for example bits=4; may be given several times."""
