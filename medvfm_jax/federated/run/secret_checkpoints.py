"""Checkpoints of a run whose noise is secret: one before its first round, one after its last."""

from collections.abc import Mapping
from typing import Any

from medvfm_jax.federated.privacy import draw_secret
from medvfm_jax.federated.run.resolving import FederatedRun
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundState
from medvfm_jax.runs import run_directory
from medvfm_jax.train import checkpoint
from medvfm_jax.train.early_stopping import EarlyStopping


def remember_secret(
    run: FederatedRun, state: RoundState, loader: RoundLoader, stopping: EarlyStopping
) -> None:
    """A checkpoint before the first round: resumed after a kill, a round must not be released with other noise too."""
    _write_checkpoint(run, state, loader.get_state(), stopping, kept=checkpoint.KEPT)


def forget_secret(run: FederatedRun, state: RoundState, loader: RoundLoader, stopping: EarlyStopping) -> None:
    """Leave one checkpoint, with another secret: the run is over, and nobody shall ever take its noise off."""
    other = draw_secret()
    state = state._replace(key=other.key("rounds"))
    _write_checkpoint(run, state, loader.get_state() | {"secret": other.data.hex()}, stopping, kept=1)


def _write_checkpoint(
    run: FederatedRun, state: RoundState, loader_state: Mapping[str, Any], stopping: EarlyStopping, kept: int
) -> None:
    """Of a private run, beside those of the hook."""
    fingerprint, folder = run.base.fingerprint, run.config.out / run_directory.CHECKPOINTS
    written = checkpoint.Checkpoint(state, loader_state, stopping, run.record, fingerprint, private=True)
    checkpoint.write(folder, written, kept)
