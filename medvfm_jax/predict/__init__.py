"""Masks of whole pictures and volumes: prediction, `segment`, `evaluate`, overlays."""

from typing import TYPE_CHECKING

from medvfm_jax import lazy

if TYPE_CHECKING:
    from medvfm_jax.predict.evaluation import evaluate
    from medvfm_jax.predict.loading import load_segmenter
    from medvfm_jax.predict.predictor import Predictor
    from medvfm_jax.predict.segment import Segmenter
    from medvfm_jax.settings.automatic import AutomaticConfig

_WHERE = {
    "AutomaticConfig": "medvfm_jax.settings.automatic",
    "Predictor": "medvfm_jax.predict.predictor",
    "Segmenter": "medvfm_jax.predict.segment",
    "evaluate": "medvfm_jax.predict.evaluation",
    "load_segmenter": "medvfm_jax.predict.loading",
}
__getattr__, __dir__ = lazy.attributes(__name__, _WHERE)

__all__ = ["AutomaticConfig", "Predictor", "Segmenter", "evaluate", "load_segmenter"]
