"""What `fewshot` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

from medvfm_jax.settings.groups import ReadingConfig, SelectCases
from medvfm_jax.settings.records import BadConfig, require

FewShotMethod = Literal["prototype", "linear", "spatial", "transductive", "persam", "matcher"]

_HEADS = ("linear", "spatial", "transductive")
# Options that some methods alone have.
_OPTIONS_OF = {
    "most_objects": ("persam",),
    "clusters": ("matcher",),
    "merged_masks": ("matcher",),
    "steps": _HEADS,
    "learning_rate": _HEADS,
    "size_margin": ("transductive",),
    "size_weight": ("transductive",),
    "temperature": ("prototype",),
    "prototypes": ("prototype",),
}


@dataclasses.dataclass(frozen=True)
class FewShotConfig(ReadingConfig):
    """Segment with a frozen model and a few labelled cases (the support); no weight of the model is trained."""

    data: str
    """Folder with labelled images, or name of a built-in dataset; its --split is scored."""
    _: dataclasses.KW_ONLY
    support: str | None = None
    """Folder with the labelled cases to learn from, with the same labels; by default the training cases of --data, as
    `adapt` would split them with --seed."""
    train_cases: int = 4
    """Patients of the support."""
    shots: tuple[int, ...] = ()
    """A learning curve in place of --train-cases: numbers of patients, like 1 2 4 8 16 32. Each of --seeds supports of
    each size learns, all in one program, and Dice is written to learning_curve.json with a plot beside it; no
    predictions are written."""
    seeds: int = 3
    """With --shots: random supports of each size; the smaller ones of a seed lie within its larger ones."""
    select_cases: SelectCases = "random"
    """How they are chosen: at `random`, every site in proportion, as for `adapt`; `k_center`: the farthest from each
    other, `k_medoids`: the middle of each cluster; both by the model's mean features, without looking at labels."""
    model: str = "dinov2-s"
    """Frozen model whose features are compared, like dinov2-s or lite-medsam."""
    method: FewShotMethod = "prototype"
    """`prototype`: each place gets the class whose mean features in the support are most similar. `linear`: a
    logistic regression of each place's features; `spatial`: the same behind a small adapter that sees neighbouring
    places; both are trained on the support in seconds. `transductive`: such a spatial one, trained further for each
    picture, of which each class has to cover about as much as in the support. `persam`: a promptable SAM is asked where
    the picture is most like the class in the support; by points, or by a box of the similar places where its weights
    know boxes alone, like lite-medsam. The box of the mask then refines it. `matcher`: it is asked about clusters of
    places that match the support both ways, and the masks that match it as a whole are merged."""
    most_objects: int = 1
    """With persam: objects of a class that are looked for in each picture or slice, one after the other."""
    clusters: int = 8
    """With matcher: clusters of matched places; each is asked about, random sets of them, and all together."""
    merged_masks: int = 10
    """With matcher: masks of a class that are merged, at most."""
    steps: int = 100
    """With linear, spatial and transductive: steps of Adam, each on all of the support; transductive takes as many
    again for each picture."""
    learning_rate: float = 0.01
    """With linear, spatial and transductive: learning rate of Adam."""
    size_margin: float = 0.2
    """With transductive: a class may cover that share less or more of a picture than on average in the support."""
    size_weight: float = 1.0
    """With transductive: weight of what it covers beyond that, beside the loss of the support."""
    temperature: float = 0.05
    """With prototype: cosine similarities are divided by it before the softmax."""
    prototypes: int = 1
    """With prototype: prototypes of each class: centres of its features in the support."""
    slices: int = 8
    """Of a volume of the support, at most so many slices, evenly among those with labels."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Cases of --data to score."""
    profile: str = "strict"
    """Metric profile: strict, nnunet, transunet_compat, medsam_compat."""
    save_predictions: bool = True
    """Write predictions, class numbers of whole cases, and overlays of some."""
    cases: int | None = None
    """Score the first so many cases only."""
    val_fraction: float = 0.15
    """Share of the patients used for validation."""
    test_fraction: float = 0.2
    """Share of the patients kept for the test."""
    seed: int = 0
    """Seed of the split, the choice of the support, the random weights of a head and the bootstrap."""
    weights: Path | None = None
    """File with the base weights, for models that are not fetched automatically."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    out: Path | None = None
    """Where scores go; by default runs/fewshot_METHOD_MODEL_DATA/scores.json, or learning_curve.json with --shots."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        for name in (
            "train_cases",
            "prototypes",
            "slices",
            "most_objects",
            "seeds",
            "steps",
            "clusters",
            "merged_masks",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.prototypes <= 256, "prototypes", self.prototypes, "at most 256")
        require(0 < self.learning_rate <= 10, "learning_rate", self.learning_rate, "positive, at most 10")
        for name in ("size_margin", "size_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        if self.shots:
            rising = all(a < b for a, b in zip((0, *self.shots), self.shots, strict=False))
            require(rising, "shots", " ".join(map(str, self.shots)), "numbers above 0 that rise")
            if self.select_cases != "random" or self.train_cases != FewShotConfig.train_cases:
                raise BadConfig(
                    "--shots chooses its supports at random: leave --select-cases and --train-cases out."
                )
        elif self.seeds != FewShotConfig.seeds:
            raise BadConfig("--seeds counts the supports of a learning curve: give --shots with it.")
        for name, methods in _OPTIONS_OF.items():
            if self.method not in methods and getattr(self, name) != getattr(FewShotConfig, name):
                raise BadConfig(
                    f"--{name.replace('_', '-')} is an option of --method {' and '.join(methods)}, and does nothing "
                    f"with {self.method}; leave it out."
                )
        require(1e-6 <= self.temperature <= 1e6, "temperature", self.temperature, "between 1e-6 and 1e6")
        require(self.cases is None or self.cases >= 1, "cases", self.cases, "at least 1")
        for name in ("val_fraction", "test_fraction"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        total = self.val_fraction + self.test_fraction
        require(total < 1, "val_fraction + test_fraction", total, "below 1, or nothing is left to learn from")
