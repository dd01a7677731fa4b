"""Training and evaluation: state, step, loop, checkpoints, run directories, `adapt`."""

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.adapt import RunResult, adapt
from medvfm_jax.train.checkpoint import Checkpoint, CheckpointError, WrongCheckpoint
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.embedding_cache import EmbeddingCache
from medvfm_jax.train.evaluate import evaluate
from medvfm_jax.train.loop import NonFiniteLoss, fit
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.state import TrainState, init_state
from medvfm_jax.train.step import make_step
from medvfm_jax.train.task import make_loss

__all__ = [
    "AdaptConfig",
    "BadConfig",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "EmbeddingCache",
    "EvaluateConfig",
    "NonFiniteLoss",
    "RunResult",
    "TrainState",
    "WrongCheckpoint",
    "adapt",
    "evaluate",
    "fit",
    "init_state",
    "make_loss",
    "make_optimizer",
    "make_schedule",
    "make_step",
]
