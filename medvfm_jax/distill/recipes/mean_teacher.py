"""Self-distillation: the student learns from the moving average of itself, beside the labels."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages(
    *,
    consistency: float = 1.0,
    labels: float = 1.0,
    embedding: float = 0.0,
    decay: float = 0.99,
    noise: float = 0.1,
    ramp: float = 0.4,
    average: bool = True,
) -> tuple[Stage, ...]:
    """decay: of the average.  noise: added to pictures.  ramp: share of the run in which consistency gains weight.

    average: False leaves the student instead of its average.  embedding: weight of the teacher's.
    """
    return (
        Stage(
            {"consistency": consistency, "labels": labels, "embedding": embedding},
            other="average",
            decay=decay,
            noise=noise,
            ramp=ramp,
            kept="average" if average else "student",
        ),
    )


RECIPE = Recipe(
    description="self-distillation: masks as the moving average of the student gives them, both with other noise in "
    "the picture, beside the labels (Mean Teacher, Tarvainen and Valpola 2017)",
    source="https://arxiv.org/abs/1703.01780",
    stages=_stages,
    differences="Published for labelled and unlabelled pictures together; here all have labels. One decay, where the "
    "release changes it after the ramp. The given teacher is where the student starts, and more with embedding=1.",
)
