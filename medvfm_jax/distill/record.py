"""What a recipe is: stages of a training run, each a weighted sum of terms on some of the student's numbers."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.option_values import typed
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.settings.records import BadConfig, require

EVERYTHING = r".*"
ENCODER = r"image_encoder/.*"
ENCODER_AND_DECODER = r"(image_encoder|mask_decoder)/.*"


class Stage(NamedTuple):
    """A part of a run.

    Attributes:
        terms: name of a term (``distill.terms.TERMS``) -> its weight in the loss.
        share: of the steps, relative to those of the other stages.
        trained: regular expression of the paths of the student's numbers that move, full match; buffers never do.
        rounds: how often student and teacher are asked about every prompt; after each round but the last both get one
            more click at a wrong pixel.
        clicks: what a pixel is compared with: the teacher's mask ("teacher") or the "labels".
        hard: weigh every prompt by how much better the teacher's mask is than the student's (TinySAM).
    """

    terms: Mapping[str, float]
    share: float = 1.0
    trained: str = EVERYTHING
    rounds: int = 1
    clicks: Literal["teacher", "labels"] = "teacher"
    hard: bool = False


class Recipe(NamedTuple):
    """A published way to teach a small network what a large one knows.

    Attributes:
        description: one line on what it does, with the authors.
        source: link to the paper.
        stages: (**options) -> the stages, in order; its keyword arguments are what a run can change with ``--set``,
            among them every ablation. Terms of weight 0 and stages of share 0 are left out.
        differences: what differs from the publication, "" if nothing is known; "Interpretation: " stands first where
            it leaves open what it does (``catalog.fidelity_of``).
    """

    description: str
    source: str
    stages: Callable[..., tuple[Stage, ...]]
    differences: str = ""

    def options(self) -> dict[str, Any]:
        """Option -> default."""
        return {name: found.default for name, found in inspect.signature(self.stages).parameters.items()}

    def configured(self, given: Mapping[str, str]) -> tuple[Stage, ...]:
        """The stages with options that were given as text.

        Raises:
            BadConfig: an option that the recipe does not have, a value of another type, or nothing left to learn.
        """
        unknown = [name for name in given if name not in self.options()]
        if unknown:
            raise BadConfig(
                f"This recipe has no option '{unknown[0]}'{did_you_mean(unknown[0], self.options())}."
            )
        hints = inspect.signature(self.stages).parameters
        try:
            values = {name: typed(value, hints[name].annotation, name) for name, value in given.items()}
        except BadAdapterConfig as error:
            raise BadConfig(str(error)) from error
        for name, value in values.items():
            require(value >= (1 if name == "rounds" else 0), name, value, "not negative, rounds at least 1")
            require(name != "first" or value <= 1, name, value, "at most 1")
        asked = [stage._replace(terms=_present(stage.terms)) for stage in self.stages(**values)]
        stages = tuple(stage for stage in asked if stage.share > 0)
        if not stages or any(not stage.terms for stage in stages):
            raise BadConfig("Every term of the recipe has weight 0: nothing would be learned.")
        return stages


def _present(terms: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in terms.items() if weight}
