"""Two stages: early features of the teacher beside the labels, then the labels alone."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages(*, first: float = 0.5, layers: float = 1.0, depth: float = 0.25) -> tuple[Stage, ...]:
    """first: share of the steps with the teacher; 1 keeps it.  depth: how deep its early blocks lie, at most."""
    return (
        Stage({"layers": layers, "labels": 1.0}, first, depths=(depth / 2, depth)),
        Stage({"labels": 1.0}, 1 - first),
    )


RECIPE = Recipe(
    description="early blocks learn those of a convolutional teacher beside the labels; then the labels alone "
    "(DearKD, Chen et al. 2022)",
    source="https://arxiv.org/abs/2204.12997",
    stages=_stages,
    differences="Interpretation: the abstract was read. Two early blocks are compared through projections that train "
    "along. The data-free part is `medvfm generate`, which makes a data folder for this and every other recipe.",
)
