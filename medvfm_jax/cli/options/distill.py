"""Options of `medvfm distill`."""

from dataclasses import dataclass

import tyro

from medvfm_jax.settings.distill import DistillConfig


@dataclass(frozen=True)
class DistillArgs(DistillConfig):
    """Teach a small network what a large one, or one that was adapted, knows.

    Example: medvfm distill --data data/dsb2018 --teacher runs/a --student lite-medsam-s --recipe task --out runs/small

    The result is a run directory like that of `adapt`: evaluate, segment, report and --resume take it.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the recipe, for example rounds=1, or the weight of any term, for example pkd=1; may be given several
    times."""
