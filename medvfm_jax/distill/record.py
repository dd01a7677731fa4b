"""What a recipe is: stages of a training run, each a weighted sum of terms on some of the student's numbers."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.option_values import typed
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.distill.terms import TERMS
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
        other: who learns beside the student, for terms that compare it with another than the teacher: nobody, its own
            moving "average", or a "partner", a second student that all terms hold for too.
        decay: of the moving average: average <- decay · average + (1 - decay) · student, at step t with
            min(decay, 1 - 1 / (t + 1)).
        noise: standard deviation of what is added to the pictures that student and other see, drawn for each.
        ramp: share of the run over which the weight of terms with the other rises, as exp(-5 (1 - t)²).
        kept: what the run leaves, the student or its moving average.
        hidden: share of the tokens that the student does not see; the teacher's embedding is rebuilt (SAMI).
        depths: relative depths of the blocks that the term "layers" compares, 1 is the last.
        moving: the weight of those moves from the first to the last in the course of the stage (SAM-Lightening).
    """

    terms: Mapping[str, float]
    share: float = 1.0
    trained: str = EVERYTHING
    rounds: int = 1
    clicks: Literal["teacher", "labels"] = "teacher"
    hard: bool = False
    other: Literal["", "average", "partner"] = ""
    decay: float = 0.99
    noise: float = 0.0
    ramp: float = 0.0
    kept: Literal["student", "average"] = "student"
    hidden: float = 0.0
    depths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    moving: bool = False

    @property
    def kinds(self) -> set[str]:
        """What its terms look at, see ``Term.kind``."""
        return {TERMS[name].kind for name in self.terms}

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher has to see the pictures; with the labels, or another student, alone it has not."""
        return self.rounds > 1 or bool(self.kinds - {"labels", "other"})


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

        An option is one of the recipe's, or the weight of any other term: of one that the recipe has where it is, one
        that it has not joins every stage that sees whole pictures.

        Raises:
            BadConfig: an option that there is not, a value of another type, or nothing left to learn.
        """
        own = self.options()
        more = [name for name in TERMS if name not in own]
        unknown = [name for name in given if name not in own and name not in more]
        if unknown:
            known = f"{did_you_mean(unknown[0], (*own, *more))}"
            raise BadConfig(f"This recipe has no option '{unknown[0]}', nor is there such a term{known}.")
        hints = {name: p.annotation for name, p in inspect.signature(self.stages).parameters.items()}
        try:
            values = {name: typed(value, hints.get(name, float), name) for name, value in given.items()}
        except BadAdapterConfig as error:
            raise BadConfig(str(error)) from error
        for name, value in values.items():
            least = 1 if name == "rounds" else 0
            require(value >= least, name, value, f"at least {least}")
            require(value <= _MOST_WEIGHT, name, value, f"at most {_MOST_WEIGHT:g}")
            require(name != "rounds" or value <= _MOST_ROUNDS, name, value, f"at most {_MOST_ROUNDS}")
            require(name not in _SHARES or value <= 1, name, value, "at most 1")
            require(name not in _BELOW_ONE or value < 1, name, value, "below 1")
        joined = {name: values.pop(name) for name in more if name in values}
        asked = [
            stage._replace(terms=_present(weighed))
            for stage, weighed in _weighed(self.stages(**values), joined)
        ]
        stages = tuple(stage for stage in asked if stage.share > 0)
        if not stages or any(not stage.terms for stage in stages):
            raise BadConfig("Every term of the recipe has weight 0: nothing would be learned.")
        for stage in stages:
            _refuse_what_is_not_there(stage)
        return stages


_MOST_WEIGHT = 1e6  # what is far beyond float32 would end the run after minutes
_MOST_ROUNDS = 16  # each is compiled on its own
_SHARES, _BELOW_ONE = ("first", "ramp", "depth"), ("decay", "hidden")


def _refuse_what_is_not_there(stage: Stage) -> None:
    """Raise BadConfig for a term whose other network, or whose hidden tokens, the recipe has not."""
    for name in stage.terms:
        kind = TERMS[name].kind
        if kind == "other" and not stage.other:
            raise BadConfig(
                f"Term '{name}' compares the student with another one that learns; choose --recipe mean_teacher or "
                "mutual."
            )
        if kind == "hidden" and not stage.hidden:
            raise BadConfig(
                f"Term '{name}' rebuilds what was hidden, and nothing is: choose --recipe sami and hidden above 0."
            )


def _weighed(stages: tuple[Stage, ...], given: Mapping[str, float]) -> list[tuple[Stage, dict[str, float]]]:
    """Every stage with its terms, at the weights that were given."""
    own = {name for stage in stages for name in stage.terms}

    def of(stage: Stage) -> dict[str, float]:
        new = {n: w for n, w in given.items() if n in stage.terms or (n not in own and not stage.hidden)}
        return {**stage.terms, **new}

    return [(stage, of(stage)) for stage in stages]


def _present(terms: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in terms.items() if weight}
