"""Few-shot methods by name: (base, encoder, support, settings) -> predictor."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from medvfm_jax.catalog import Catalog
from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.learners import Learner, head_learner, prototype_learner
from medvfm_jax.few_shot.matcher import MatcherPredictor
from medvfm_jax.few_shot.persam import PersamPredictor
from medvfm_jax.few_shot.predictors import FewShotPredictor, LearnedPredictor
from medvfm_jax.few_shot.transductive import TransductivePredictor
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base


class Method(NamedTuple):
    """A few-shot method; source: of the paper; learner: of one that learns from features alone, for learning curves."""

    description: str
    source: str
    make: Callable[[Base, DenseEncoder, Support, FewShotConfig], FewShotPredictor]
    learner: Callable[[FewShotConfig], Learner] | None = None


def _learned(description: str, source: str, learner: Callable[[FewShotConfig], Learner]) -> Method:
    """A method that is no more than what it learns from features."""

    def make(base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig) -> FewShotPredictor:
        return LearnedPredictor(encoder, support, learner(config), config.seed)

    return Method(description, source, make, learner)


def _persam(base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig) -> FewShotPredictor:
    return PersamPredictor(base, encoder, support, most_objects=config.most_objects)


def _matcher(base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig) -> FewShotPredictor:
    settings = {"clusters": config.clusters, "merged": config.merged_masks, "seed": config.seed}
    return MatcherPredictor(base, encoder, support, **settings)


def _transductive(
    base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig
) -> FewShotPredictor:
    return TransductivePredictor(encoder, support, config)


METHODS: Catalog[Method] = Catalog(
    "few-shot method",
    {
        "prototype": _learned(
            "class prototypes by masked average pooling, cosine similarity (PANet)",
            "https://arxiv.org/abs/1908.06391",
            prototype_learner,
        ),
        "linear": _learned(
            "a logistic regression of every place's features, trained with cross-entropy and Dice (linear probe)",
            "https://arxiv.org/abs/2303.17051",
            partial(head_learner, kind="linear"),
        ),
        "spatial": _learned(
            "the same behind a residual adapter that sees neighbouring places (FSEFT)",
            "https://arxiv.org/abs/2303.17051",
            partial(head_learner, kind="spatial"),
        ),
        "transductive": Method(
            "a spatial head trained further for each picture, which has to cover as much as in the support (FSEFT)",
            "https://arxiv.org/abs/2303.17051",
            _transductive,
        ),
        "persam": Method(
            "SAM asked at the place most like the target, its attention guided; promptable models (PerSAM)",
            "https://arxiv.org/abs/2305.03048",
            _persam,
        ),
        "matcher": Method(
            "SAM asked at places that match the support both ways, masks that match as a whole merged (Matcher)",
            "https://arxiv.org/abs/2305.13310",
            _matcher,
        ),
    },
    BadConfig,
)
