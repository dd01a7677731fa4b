"""Few-shot methods by name: (base, encoder, support, settings) -> predictor."""

from collections.abc import Callable
from typing import NamedTuple

from medvfm_jax.catalog import Catalog
from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.persam import PersamPredictor
from medvfm_jax.few_shot.predictors import FewShotPredictor, PrototypePredictor
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.assemble import Base


class Method(NamedTuple):
    """A few-shot method; source: of the paper."""

    description: str
    source: str
    make: Callable[[Base, DenseEncoder, Support, FewShotConfig], FewShotPredictor]


def _prototype(
    base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig
) -> FewShotPredictor:
    return PrototypePredictor(encoder, support, temperature=config.temperature, count=config.prototypes)


def _persam(base: Base, encoder: DenseEncoder, support: Support, config: FewShotConfig) -> FewShotPredictor:
    return PersamPredictor(base, encoder, support, most_objects=config.most_objects)


METHODS: Catalog[Method] = Catalog(
    "few-shot method",
    {
        "prototype": Method(
            "class prototypes by masked average pooling, cosine similarity (PANet)",
            "https://arxiv.org/abs/1908.06391",
            _prototype,
        ),
        "persam": Method(
            "SAM asked at the place most like the target, its attention guided; promptable models (PerSAM)",
            "https://arxiv.org/abs/2305.03048",
            _persam,
        ),
    },
    BadConfig,
)
