"""Options of `medvfm generate`."""

from dataclasses import dataclass

from medvfm_jax.settings.generate import GenerateConfig


@dataclass(frozen=True)
class GenerateArgs(GenerateConfig):
    """Make pictures from a model alone, to distil it where its data cannot be had.

    Example: medvfm generate --teacher runs/a --images 64 --out data/generated

    The result is a data folder: distill, and every other command, takes it as --data.
    """
