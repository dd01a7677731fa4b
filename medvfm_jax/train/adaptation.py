"""`adapt`: from a folder of labelled images to a delta, in a run directory that can be continued and reported."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.adapters.sites import remembering
from medvfm_jax.models.scan import unstack_delta
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.runs import goodput, mirror, retrieve, run_directory, stored_copy
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import to_json
from medvfm_jax.train import checkpoint, hooks, together, trackers
from medvfm_jax.train.base_model import entry_of
from medvfm_jax.train.data_check import lines
from medvfm_jax.train.loop import AGREED, Hook, NonFiniteLoss
from medvfm_jax.train.stored_delta import delta_metadata
from medvfm_jax.train.training import Run, Trained, resolve, train
from medvfm_jax.train.training_data import opened_once
from medvfm_jax.train.wall_time import WallTime
from medvfm_jax.weights import artifacts


class RunResult(NamedTuple):
    """What `adapt` leaves behind.

    Attributes:
        folder: run directory.
        delta: file of the delta.
        step: optimiser steps taken.
        val_dice: of the delta kept, None without validation.
        trained: number of trained parameters.
        total: number of all parameters.
        delta_bytes: size of the file.
        goodput: share of the wall time of all attempts that went into training steps that count, None if not measured.
    """

    folder: Path
    delta: Path
    step: int
    val_dice: float | None
    trained: int
    total: int
    delta_bytes: int
    goodput: float | None = None


def adapt(
    config: AdaptConfig, display: ProgressDisplay | None = None, placement: Placement | None = None
) -> RunResult:
    """Train a delta as configured, in ``config.out``; with ``resume`` continue exactly where it was.

    Args:
        config: settings.
        display: shows progress; None draws on stderr.
        placement: many devices and processes, see ``parallel.Placement``; may change when a run is resumed. None: one
            device.

    Returns:
        Where the delta lies and what was trained.

    Raises:
        MedvfmError: everything a user can cause: settings, data, weights, a run directory in use, a full disk, a loss
            that is not finite.
    """

    def resolved(placement: Placement, display: ProgressDisplay) -> Run:
        return resolve(config, placement, display)

    return run_in_directory(config, resolved, "adapt", display, placement)


def adapt_together(
    configs: Sequence[AdaptConfig], say: Callable[[str], None] = lambda text: None
) -> list[RunResult | NonFiniteLoss]:
    """Train runs that differ by their seeds as one program (``train.together``), each in its own run directory.

    They have no checkpoints: a directory is left behind when its run has ended, and an interrupted one is claimed
    again with ``resume``.

    Args:
        configs: settings without validation; only seed and out may differ.
        say: told what is done.

    Returns:
        Of each run where its delta lies, or why its loss was not finite; such a directory has no delta.

    Raises:
        NotAlike: runs that cannot train as one program.
        MedvfmError: everything a user can cause.
    """
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(ProgressDisplay(title="adapt"))
        stack.enter_context(remembering({}))  # the model is traced once for the sites of all,
        stack.enter_context(opened_once())  # and the data are read once
        runs: list[Run] = []
        for config in configs:
            run_directory.refuse_existing(config.out, config.resume)
            stack.enter_context(run_directory.locked(config.out))
            runs.append(_sharing(resolve(config, display=display), runs))
            together.check_alike(runs)
        told = []
        for run in runs:
            run_directory.claim(run.config.out, run.record, run.config.resume)
            run_directory.truncate_metrics(run.config.out, 0, say)
            record = stack.enter_context(_recorder(run.config, True, 0, say))
            told.append([hooks.MetricsLog(record, run.schedule)])
        _announce(runs[0], say)
        ended = together.train_together(runs, told, say=say)
        return [
            one if isinstance(one, NonFiniteLoss) else _finish(run, one, lambda text: None)
            for run, one in zip(runs, ended)
        ]


def _sharing(run: Run, before: Sequence[Run]) -> Run:
    """The run with the frozen parameters of the first one where they are the same, so that they are held once."""
    if before and together.same_parameters(run, before[0]):
        kept = run.assembled.base._replace(params=before[0].assembled.base.params)
        return run._replace(assembled=run.assembled._replace(base=kept))
    return run


def run_in_directory(
    config: AdaptConfig,
    resolved: Callable[[Placement, ProgressDisplay], Run],
    title: str,
    display: ProgressDisplay | None = None,
    placement: Placement | None = None,
) -> RunResult:
    """Train a run in ``config.out``, with checkpoints and metrics; with ``resume`` continue exactly where it was.

    Args:
        config: says where, and whether to continue.
        resolved: makes the run.
        title: of the command, for the display.
        display: shows progress; None draws on stderr.
        placement: see ``adapt``.

    Returns:
        Where the delta lies and what was trained.

    Raises:
        MedvfmError: what ``resolved`` and training raise; a run directory in use, a full disk.
    """
    placement = placement or Placement()
    with _leaving_together(placement), contextlib.ExitStack() as stack:
        clock = stack.enter_context(WallTime())
        display = display or stack.enter_context(ProgressDisplay(title=title))
        writes = placement.process == 0
        if config.mirror and config.resume:
            retrieve.finish(config.out)
        if writes:
            run_directory.refuse_existing(config.out, config.resume)
            stack.enter_context(run_directory.locked(config.out))
        if config.mirror:
            _from_mirror(config, placement, display.say)
        run = resolved(placement, display)
        copies = None
        if writes:
            run_directory.claim(config.out, run.record, config.resume)
            if config.mirror:
                copies = stack.enter_context(mirror.Mirror(config.out, config.mirror, display.say))
        _announce(run, display.say)
        start = _last_checkpoint(run, display.say)
        before = start.step if start else 0
        with contextlib.ExitStack() as inner:
            told: list[Hook] = []
            if writes:
                told.append(inner.enter_context(hooks.TimesLog(config.out, clock, before)))
            record = inner.enter_context(_recorder(config, writes, before, display.say))
            told += [hooks.MetricsLog(record, run.schedule), _checkpoints(run, inner, before), display]
            if copies is not None:
                told.append(hooks.Copies(config.out / run_directory.CHECKPOINTS, copies.update))
            if writes and (steps := config.profiled_steps()):
                trace = hooks.Profile(config.out / run_directory.PROFILE, *steps, before, display.say)
                told.append(inner.enter_context(trace))
            result = _finish(run, train(run, told, start=start, say=display.say, clock=clock), display.say)
        spent = goodput.of_run(config.out) if writes else None
        if spent is not None:
            display.say(spent.describe())
        return result._replace(goodput=None if spent is None else round(spent.share, 4))


@contextlib.contextmanager
def _leaving_together(placement: Placement) -> Iterator[None]:
    """Wait for the first process, which writes and copies after the others are done.

    Without, one that is done waits for a minute, and then JAX ends all of them, whatever they do.  What may have ended
    one process alone is no reason to wait: the others are not on their way here.
    """
    try:
        yield
    except (NonFiniteLoss, KeyboardInterrupt) as error:
        if isinstance(error, NonFiniteLoss) or AGREED in error.args:
            placement.any(False)
        raise
    placement.any(False)


def _from_mirror(config: AdaptConfig, placement: Placement, say: Callable[[str], None]) -> None:
    """Bring a run that is to be continued, and is not here, from the mirror; where hosts share no disk, to each."""

    def absent() -> bool:
        return not (config.out / run_directory.CONFIG).exists()

    if placement.process == 0:
        stored_copy.refuse_inside(config.mirror, config.out)
    if placement.process == 0 and absent():
        if not config.resume:
            mirror.refuse_existing(config.mirror)
        elif retrieve.fetch(config.mirror, config.out):
            say(f"the run was brought from {config.mirror}")
        else:
            say(f"{config.mirror} holds no copy of a run yet: this one starts at the beginning")
    if placement.processes > 1 and config.resume:
        placement.any(False)  # waits until the first process is done
        if placement.process > 0 and absent():
            retrieve.fetch(config.mirror, config.out)


def _announce(run: Run, say: Callable[[str], None]) -> None:
    config, prompt = run.config, run.assembled.prompt
    prompts = "no prompts" if prompt == "none" else f"{prompt} prompts"
    say(f"{config.model} with {config.adapter}, {prompts}: {run.assembled.size}")
    say(run.data.describe())
    for line in lines(run.checked, run.data.source.split):
        say(line)


def _last_checkpoint(run: Run, say: Callable[[str], None]) -> checkpoint.Checkpoint | None:
    """The checkpoint to go on from, and a metrics file that ends there."""
    folder, placement = run.config.out, run.placement
    below, fingerprint = folder / run_directory.CHECKPOINTS, run.assembled.base.fingerprint
    if run.config.checkpoints == "sharded":
        from medvfm_jax.train import sharded_checkpoint  # imports orbax

        like = run.start()
        where = placement.shardings(like, run.optimizer)
        found = sharded_checkpoint.read(below, like, where, fingerprint, say)
    else:
        like = run.start()
        found = checkpoint.read(
            below, like, fingerprint, say, run.model(like.delta)
        )  # the best is the model alone
    step = found.step if found else 0
    placement.same(step, "the step of the last checkpoint")
    if placement.process == 0:
        run_directory.truncate_metrics(folder, step, say)
    if found:
        say(f"resuming at step {step} of {run.config.steps}")
    return found


def _checkpoints(run: Run, stack: contextlib.ExitStack, taken: int) -> Hook:
    config, placement = run.config, run.placement
    if config.checkpoints == "sharded":
        from medvfm_jax.train.sharded_checkpoint import ShardedCheckpoints  # imports orbax

        folder, fingerprint = config.out / run_directory.CHECKPOINTS, run.assembled.base.fingerprint
        return stack.enter_context(
            ShardedCheckpoints(folder, run.record, fingerprint, config.checkpoint_every, taken)
        )
    return hooks.Checkpoints(
        config.out / run_directory.CHECKPOINTS,
        run.record,
        run.assembled.base.fingerprint,
        config.checkpoint_every,
        math.inf if placement.processes > 1 else config.checkpoint_seconds,
        placement.fetch,
        placement.process == 0,
    )


@contextlib.contextmanager
def _recorder(
    config: AdaptConfig, writes: bool, taken: int, say: Callable[[str], None]
) -> Iterator[hooks.Recorder]:
    with contextlib.ExitStack() as stack:
        if not writes:
            yield hooks.to_all()
            return
        recorders = [hooks.to_file(config.out)]
        if config.tensorboard:
            recorders.append(stack.enter_context(hooks.to_tensorboard(config.out / "tensorboard", taken)))
        told = trackers.told_settings(to_json(config))
        for name, key, where, open_ in (
            ("Weights & Biases", "wandb", config.wandb, trackers.to_wandb),
            ("MLflow", "mlflow", config.mlflow, trackers.to_mlflow),
        ):
            if where is None:
                continue
            # A job that is started again by a cluster must not end because a server is away.
            known = config.resume and trackers.knows(config.out, key)
            try:
                record = stack.enter_context(open_(config.out, where, told))
            except trackers.TrackerError as error:
                if not known:
                    raise
                say(
                    f"{error} The run, which was there before, goes on without it; metrics.jsonl has all lines."
                )
                continue
            recorders.append(stack.enter_context(trackers.in_background(record, name, say)))
        yield hooks.to_all(*recorders)


def _finish(run: Run, trained: Trained, say: Callable[[str], None]) -> RunResult:
    folder, size, stopping = run.config.out, run.assembled.size, trained.stopping
    path = folder / run_directory.DELTA
    if run.placement.process == 0:
        metadata = delta_metadata(run.config.model, run.config.adapter, folder, run.data.source.dataset)
        delta = trained.delta
        if run.config.scan_blocks:  # a delta is that of plain blocks, however it was trained
            delta = unstack_delta(delta, entry_of(run.config.model).group)
        artifacts.save_delta(path, delta, metadata)
    if trained.val_dice is not None:
        say(f"kept the delta of step {stopping.step}, validation Dice {trained.val_dice:.4f}")
    say(f"delta: {path}; settings, metrics and checkpoints beside it in {folder}")
    return RunResult(folder, path, trained.step, trained.val_dice, size.trained, size.total, size.bytes)
