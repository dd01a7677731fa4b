"""Checkpoints of states that are divided over devices: each process writes its part, in the background (orbax).

``checkpoints/120/`` holds ``state`` (arrays, as orbax and tensorstore lay them out) and ``record`` (JSON: position of
the loader, early stopping, fingerprint of the base weights, shapes).  A checkpoint appears under its name when it is
whole; the last two are kept.  Any mesh and any number of processes can read it.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from medvfm_jax.printable import counted
from medvfm_jax.runs.goodput import CHECKPOINT
from medvfm_jax.train.checkpoint import (
    KEPT,
    Checkpoint,
    CheckpointError,
    WrongCheckpoint,
    loader_from_json,
    loader_to_json,
)
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.loop import StepEnd
from medvfm_jax.train.state import TrainState

_STATE, _RECORD = "state", "record"
_FAILURES = (OSError, ValueError, RuntimeError)  # of orbax and tensorstore


class ShardedCheckpoints:
    """Hook: start to write a checkpoint every ``every`` steps and at the end; use it as a context.

    The state is copied to the hosts' memory before the next step, shard by shard, and written while training goes on;
    every process takes part, so that all must be asked at the same steps.

    taken: the step that the run goes on from.  Later ones that are there were damaged and passed over; they are deleted
    when the first new one is due, for orbax writes none over and none before the last that it sees.
    """

    spends = CHECKPOINT

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        fingerprint: str,
        every: int = 100,
        taken: int | None = None,
    ):
        self._folder, self._config, self._fingerprint = folder, dict(config), fingerprint
        self._every, self._taken = every, taken
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> "ShardedCheckpoints":
        """Open the folder."""
        self._manager = _manager(self._folder, background=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for what is being written; raises CheckpointError unless something else has ended the run."""
        if self._manager is None:
            return
        try:
            self._manager.close()
        except _FAILURES as failure:
            if kind is None:
                raise CheckpointError(_explain(failure, self._folder)) from failure

    def reads_state(self, step: int, last: bool) -> bool:
        """Whether a checkpoint is due after this step."""
        return step % self._every == 0 or last

    def __call__(self, end: StepEnd) -> None:
        """Start to write a checkpoint if one is due; raises CheckpointError, also for the one before."""
        if end.state is None or self._manager is None or not self.reads_state(end.step, end.last):
            return
        stopping = end.stopping or EarlyStopping(patience=0)
        arrays = _arrays(end.state, stopping.delta)
        record = {
            "loader_state": loader_to_json(end.loader_state),
            "early_stopping": stopping.to_json(),
            "fingerprint": self._fingerprint,
            "config": self._config,
            "arrays": _shapes(arrays),
        }
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        try:
            self._manager.check_for_errors()
            if self._taken is not None:
                for step in [step for step in self._manager.all_steps() if step > self._taken]:
                    self._manager.delete(step)
                self._taken = None
            if end.step in self._manager.all_steps():  # a finished run is resumed
                return
            self._manager.save(end.step, args=args)
            if end.last:
                self._manager.wait_until_finished()
        except _FAILURES as error:
            raise CheckpointError(_explain(error, self._folder)) from error


def read(
    folder: Path,
    like: TrainState,
    where: Any,
    fingerprint: str,
    warn: Callable[[str], None] = print,
) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if there has never been one.

    Args:
        folder: of the checkpoints.
        like: a state of the same run at any step; its shapes and dtypes are what is expected.
        where: tree like ``like`` of the shardings that the arrays get; None for the default device.
        fingerprint: of the base weights in memory.
        warn: told about each damaged checkpoint that is passed over.

    Returns:
        The checkpoint, its state placed.

    Raises:
        WrongCheckpoint: of another run.
        CheckpointError: none that is there can be read.
    """
    if not folder.is_dir():
        return None
    with _manager(folder, background=False) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            try:
                found = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
                record = found[_RECORD]
                _check(record, like, fingerprint, folder / str(step))
                wanted = _wanted(like, where, record)
                arrays = manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
                )[_STATE]
            except CheckpointError:
                raise
            except (
                OSError,
                ValueError,
                KeyError,
                RuntimeError,
            ) as error:  # of files not as they were written
                why = _first_line(error)
                warn(f"checkpoint {step} is damaged ({why}); falling back to the one before it")
                continue
            kept = arrays.get("best")
            stopping = EarlyStopping.from_json(
                record["early_stopping"], None if kept is None else jax.tree.map(np.asarray, kept)
            )
            return Checkpoint(
                _with_key(arrays["state"], like), loader_from_json(record["loader_state"]), stopping,
                record["config"], record["fingerprint"],
            )  # fmt: skip
    if steps:
        raise CheckpointError(
            f"{folder} has {counted(len(steps), 'checkpoint')} and none that is intact; delete that folder to train "
            "from the beginning."
        )
    return None


def _manager(folder: Path, *, background: bool) -> ocp.CheckpointManager:
    # orbax tells every step of its own, and of an error the traceback of each of its threads; it is raised too.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT, enable_async_checkpointing=background, create=True,
        cleanup_tmp_directories=background,  # of a process that was killed while it wrote
    )  # fmt: skip
    handlers = {_STATE: ocp.StandardCheckpointHandler(), _RECORD: ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(
        folder.absolute(), options=options, item_names=(_STATE, _RECORD), item_handlers=handlers
    )


def _arrays(state: TrainState, best: Any) -> dict[str, Any]:
    plain = state._replace(key=jax.random.key_data(state.key))._asdict()
    return {"state": plain, **({} if best is None else {"best": best})}


def _with_key(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
    key = jax.random.wrap_key_data(arrays["key"], impl=jax.random.key_impl(like.key))
    return TrainState(**{**arrays, "key": key})


def _shapes(arrays: Any) -> dict[str, list[Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _check(record: Mapping[str, Any], like: TrainState, fingerprint: str, path: Path) -> None:
    if record["fingerprint"] != fingerprint:
        raise WrongCheckpoint(
            f"{path} was trained on other base weights (fingerprint {record['fingerprint'][:12]}, in memory "
            f"{fingerprint[:12]}); resume with the same model, or choose a new run directory."
        )
    has_best = record["early_stopping"]["step"] >= 0
    expected, found = (
        _shapes(jax.eval_shape(lambda: _arrays(like, like.delta if has_best else None))),
        record["arrays"],
    )
    if expected != found:
        odd = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise WrongCheckpoint(
            f"{path} holds other arrays than this run trains, for example {odd[0]} (expected "
            f"{expected.get(odd[0])}, found {found.get(odd[0])}); use the settings the run was started with."
        )


def _wanted(like: TrainState, where: Any, record: Mapping[str, Any]) -> Any:
    """Shapes with the shardings that the arrays get; the best delta lies on the hosts."""
    has_best = record["early_stopping"]["step"] >= 0
    shapes = jax.eval_shape(lambda: _arrays(like, like.delta if has_best else None))
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if where is None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=alone), shapes)
    placed = where._asdict() | {"key": where.key}
    state = jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes["state"], placed
    )
    everywhere = jax.sharding.NamedSharding(where.key.mesh, jax.sharding.PartitionSpec())
    kept = {
        name: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), tree)
        for name, tree in shapes.items()
        if name != "state"
    }
    return {"state": state, **kept}


def _explain(error: Exception, folder: Path) -> str:
    if "No space left on device" in str(error):
        return (
            f"The disk is full while writing a checkpoint below {folder}; free some space, then run the same command "
            "with --resume."
        )
    return (
        f"Cannot write a checkpoint below {folder}: {_first_line(error)}; check the folder, then run the same command "
        "with --resume."
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
