"""Training: assemble, resolve and train; state, step, loop, checkpoints, `adapt`."""

from typing import TYPE_CHECKING

from medvfm_jax import lazy

if TYPE_CHECKING:
    from medvfm_jax.settings.adapt import AdaptConfig
    from medvfm_jax.settings.records import BadConfig
    from medvfm_jax.train.adaptation import RunResult, adapt, adapt_together
    from medvfm_jax.train.checkpoint import Checkpoint, CheckpointError, WrongCheckpoint
    from medvfm_jax.train.early_stopping import EarlyStopping
    from medvfm_jax.train.embedding_cache import EmbeddingCache
    from medvfm_jax.train.loop import NonFiniteLoss, fit
    from medvfm_jax.train.optimizer import make_optimizer, make_schedule
    from medvfm_jax.train.state import TrainState, init_state
    from medvfm_jax.train.step import make_step
    from medvfm_jax.train.task import make_loss
    from medvfm_jax.train.training import Run, Trained, resolve, train

_WHERE = {
    "AdaptConfig": "medvfm_jax.settings.adapt",
    "BadConfig": "medvfm_jax.settings.records",
    "Checkpoint": "medvfm_jax.train.checkpoint",
    "CheckpointError": "medvfm_jax.train.checkpoint",
    "EarlyStopping": "medvfm_jax.train.early_stopping",
    "EmbeddingCache": "medvfm_jax.train.embedding_cache",
    "NonFiniteLoss": "medvfm_jax.train.loop",
    "Run": "medvfm_jax.train.training",
    "RunResult": "medvfm_jax.train.adaptation",
    "TrainState": "medvfm_jax.train.state",
    "Trained": "medvfm_jax.train.training",
    "WrongCheckpoint": "medvfm_jax.train.checkpoint",
    "adapt": "medvfm_jax.train.adaptation",
    "adapt_together": "medvfm_jax.train.adaptation",
    "fit": "medvfm_jax.train.loop",
    "init_state": "medvfm_jax.train.state",
    "make_loss": "medvfm_jax.train.task",
    "make_optimizer": "medvfm_jax.train.optimizer",
    "make_schedule": "medvfm_jax.train.optimizer",
    "make_step": "medvfm_jax.train.step",
    "resolve": "medvfm_jax.train.training",
    "train": "medvfm_jax.train.training",
}
__getattr__, __dir__ = lazy.attributes(__name__, _WHERE)

__all__ = [
    "AdaptConfig",
    "BadConfig",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "EmbeddingCache",
    "NonFiniteLoss",
    "Run",
    "RunResult",
    "TrainState",
    "Trained",
    "WrongCheckpoint",
    "adapt",
    "adapt_together",
    "fit",
    "init_state",
    "make_loss",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "resolve",
    "train",
]
