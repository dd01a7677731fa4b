"""Methods that learn from features alone: (support) -> model, (model, features) -> logits; both pure."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from medvfm_jax.few_shot.heads import HeadKind, fit_head, head_logits
from medvfm_jax.few_shot.prototypes import cosine_logits, make_prototypes
from medvfm_jax.settings.few_shot import FewShotConfig


class Learner(NamedTuple):
    """A method as two pure functions, so that ``vmap`` learns from many supports at once.

    Attributes:
        fit: (features (n, h, w, c), shares (n, K, h, w), present (n,), key) -> model, a pytree of arrays.
        logits: (model, features (h, w, c)) -> (K, h, w).
    """

    fit: Callable[[Array, Array, Array, Array], Any]
    logits: Callable[[Any, Array], Array]


def prototype_learner(config: FewShotConfig) -> Learner:
    """Class prototypes; see ``prototypes``."""

    def fit(features: Array, shares: Array, present: Array, key: Array) -> Any:
        return make_prototypes(features, shares * present[:, None, None, None], config.prototypes)

    return Learner(fit, lambda model, features: cosine_logits(features, model, config.temperature))


def head_learner(config: FewShotConfig, kind: HeadKind) -> Learner:
    """A head that is trained on the support; see ``heads``."""

    def fit(features: Array, shares: Array, present: Array, key: Array) -> Any:
        rate = config.learning_rate
        return fit_head(features, shares, present, key, kind=kind, steps=config.steps, learning_rate=rate)

    return Learner(fit, head_logits)
