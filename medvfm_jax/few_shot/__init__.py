"""Segmentation from a few labelled pictures with a frozen model: prototypes, heads, and what compares with them."""

from typing import TYPE_CHECKING

from medvfm_jax import lazy

if TYPE_CHECKING:
    from medvfm_jax.few_shot.curve import learning_curve
    from medvfm_jax.few_shot.dense_features import BadSupport, DenseEncoder, Support, encode_support
    from medvfm_jax.few_shot.heads import Head, fit_head, head_logits
    from medvfm_jax.few_shot.matcher import MatcherPredictor
    from medvfm_jax.few_shot.persam import PersamPredictor
    from medvfm_jax.few_shot.predictors import LearnedPredictor
    from medvfm_jax.few_shot.prototypes import Prototypes, cosine_logits, make_prototypes, masked_average
    from medvfm_jax.few_shot.scoring import few_shot
    from medvfm_jax.few_shot.transductive import fit_transductive, size_penalty

_WHERE = {
    **dict.fromkeys(
        ("BadSupport", "DenseEncoder", "Support", "encode_support"), "medvfm_jax.few_shot.dense_features"
    ),
    **dict.fromkeys(("Head", "fit_head", "head_logits"), "medvfm_jax.few_shot.heads"),
    "learning_curve": "medvfm_jax.few_shot.curve",
    "MatcherPredictor": "medvfm_jax.few_shot.matcher",
    "PersamPredictor": "medvfm_jax.few_shot.persam",
    "LearnedPredictor": "medvfm_jax.few_shot.predictors",
    **dict.fromkeys(
        ("Prototypes", "cosine_logits", "make_prototypes", "masked_average"), "medvfm_jax.few_shot.prototypes"
    ),
    "few_shot": "medvfm_jax.few_shot.scoring",
    **dict.fromkeys(("fit_transductive", "size_penalty"), "medvfm_jax.few_shot.transductive"),
}
__getattr__, __dir__ = lazy.attributes(__name__, _WHERE)

__all__ = [
    "BadSupport",
    "DenseEncoder",
    "Head",
    "LearnedPredictor",
    "MatcherPredictor",
    "PersamPredictor",
    "Prototypes",
    "Support",
    "cosine_logits",
    "encode_support",
    "few_shot",
    "fit_head",
    "fit_transductive",
    "head_logits",
    "learning_curve",
    "make_prototypes",
    "masked_average",
    "size_penalty",
]
