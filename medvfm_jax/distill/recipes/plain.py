"""No teacher but for the start: the same student on the labels alone, to see what a teacher adds."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages() -> tuple[Stage, ...]:
    return (Stage({"labels": 1.0}),)


RECIPE = Recipe(
    description="the labels alone, from the same start: what the others are compared with",
    source="",
    stages=_stages,
)
