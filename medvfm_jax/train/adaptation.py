"""`adapt`: from a folder of labelled images to a delta, with everything needed to continue and to report."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from medvfm_jax import systems
from medvfm_jax.adapters import AdaptedModel, Count, count, touches_encoder
from medvfm_jax.data import usual_augmentation
from medvfm_jax.data.check import DatasetCheck
from medvfm_jax.fetch import cache_dir
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import to_json
from medvfm_jax.train import checkpoint, hooks, run_directory
from medvfm_jax.train.assemble import (
    Base,
    delta_metadata,
    entry_of,
    load_base,
    transformed,
    with_adapter,
)
from medvfm_jax.train.data_check import about, check_split, lines, recorded_objects
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed, make_cache
from medvfm_jax.train.loop import Loader, MappedLoader, fit
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.placement import OneDevice, Placement
from medvfm_jax.train.progress import ProgressDisplay
from medvfm_jax.train.seen_at_once import patch_shape, recorded_shape, with_depth
from medvfm_jax.train.state import TrainState, init_state
from medvfm_jax.train.step import make_step
from medvfm_jax.train.task import make_loss, make_overlap
from medvfm_jax.train.training_data import TrainingData, open_split, training_data
from medvfm_jax.train.validation import make_validation
from medvfm_jax.types import Batch, Delta, Params
from medvfm_jax.weights import artifacts


class RunResult(NamedTuple):
    """What `adapt` leaves behind; step: steps taken; val_dice: of the delta kept, None without validation."""

    folder: Path
    delta: Path
    step: int
    val_dice: float | None
    trained: int
    total: int
    delta_bytes: int


class _Run(NamedTuple):
    """Everything resolved, nothing trained yet."""

    config: AdaptConfig
    record: dict[str, Any]  # config.json
    base: Base
    adapted: AdaptedModel
    data: TrainingData
    checked: DatasetCheck
    delta: Delta
    size: Count
    placement: Placement


def adapt(
    config: AdaptConfig, display: ProgressDisplay | None = None, placement: Placement | None = None
) -> RunResult:
    """Train a delta as configured, in ``config.out``; with ``resume`` continue exactly where it was.

    placement: over many devices and processes, see ``parallel.OverMesh``; may change when a run is resumed.
    Raises MedvfmError for everything a user can cause: settings, data, weights, a run directory in use, a
    full disk, a loss that is not finite.
    """
    with contextlib.ExitStack() as stack:
        display = display or stack.enter_context(ProgressDisplay(title="adapt"))
        placement = placement or OneDevice()
        entry = entry_of(config.model)
        config.check_model(entry)
        accumulate = config.resolved_accumulate(entry, jax.default_backend(), placement.parts)
        placement.check_batch(config.batch_size, accumulate)
        if placement.process == 0:
            run_directory.refuse_existing(config.out, config.resume)
            stack.enter_context(run_directory.locked(config.out))
        run = _resolve(config, placement, accumulate, display)
        if placement.process == 0:
            run_directory.claim(config.out, run.record, config.resume)
        _announce(run, display.say)
        return _train(run, display)


def _resolve(config: AdaptConfig, placement: Placement, accumulate: int, display: ProgressDisplay) -> _Run:
    system = systems.get(config.adapter)
    source = open_split(
        config.data,
        seed=config.seed,
        val=config.val_fraction,
        test=config.test_fraction,
        train_cases=config.train_cases,
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch,
        follow_links=config.follow_links,
        objects=config.objects,
    )
    checked = check_split(source, skip_bad=config.skip_bad, track=display.track, say=display.say)
    classes, labels = source.dataset.classes, dict(source.dataset.labels)
    base = load_base(
        config.model,
        classes=classes,
        seed=config.seed,
        dtype=config.dtype,
        file=config.weights,
        offline=config.offline,
        keep=config.keep,
        shape=patch_shape(config, entry_of(config.model), source.dataset),
    )
    prompt = config.resolved_prompt(system, base.model.spec.task)
    checked = about(checked, prompt)
    change = with_depth(system.transform(base.model.spec, prompt, classes), config)
    base = transformed(base, change)
    data = training_data(source, base.model.spec, prompt, config)
    adapter = systems.configure(
        config.adapter, system, base.model.spec, systems.parse_assignments(config.set)
    )
    adapted = with_adapter(base, adapter)
    delta = adapted.init(jax.random.fold_in(jax.random.key(config.seed), 1), base.params)
    size = count(delta, base.params)
    record = to_json(config) | {
        "resolved": {
            "data": str(source.dataset.folder.resolve()),
            "checked": checked.record(),
            "prompt": prompt,
            "objects": recorded_objects(source.dataset, prompt),
            "transform": change,
            **recorded_shape(base.model.spec),
            "adapter": adapter,
            "learning_rate": config.resolved_learning_rate(system, entry_of(config.model)),
            "objective": config.resolved_objective(system, base.model.spec.task),
            "trained": {"parameters": size.trained, "total": size.total, "bytes": size.bytes},
            "classes": classes,
            "labels": labels,
            "fingerprint": base.fingerprint,
            "data_sha256": source.sha256,
            "split": source.split_record(),
        },
        "placement": placement.describe() | {"accumulate": accumulate},
    }
    base = base._replace(params=placement.keep(base.params))
    return _Run(config, record, base, adapted, data, checked, delta, size, placement)


def _announce(run: _Run, say: Callable[[str], None]) -> None:
    config, resolved = run.config, run.record["resolved"]
    prompt = "no prompts" if resolved["prompt"] == "none" else f"{resolved['prompt']} prompts"
    say(f"{config.model} with {config.adapter}, {prompt}: {run.size}")
    say(run.data.describe())
    for line in lines(run.checked, run.data.source.split):
        say(line)


def _train(run: _Run, display: ProgressDisplay) -> RunResult:
    config, folder, placement = run.config, run.config.out, run.placement
    writes, together = placement.process == 0, placement.processes > 1
    schedule = make_schedule(
        config.schedule, run.record["resolved"]["learning_rate"], config.steps, config.warmup_steps()
    )
    optimizer = make_optimizer(schedule, config.weight_decay, config.clip_norm or None)
    cache = _cache(run)
    if cache is not None:
        display.say("the encoder is frozen: each image is encoded once and its embedding kept")
    loss = make_loss(run.adapted, run.record["resolved"]["objective"], cached=cache is not None)
    start = init_state(run.delta, optimizer, jax.random.fold_in(jax.random.key(config.seed), 2))
    state, loader, stopping = _restore(run, start, cache, display.say)
    params, state = placement.put_params(run.base.params), placement.put_state(state, optimizer)

    with _recorder(config, writes) as record:
        validation = _validation(run, params, loss, cache, stopping, record)
        keep = hooks.Checkpoints(
            folder / run_directory.CHECKPOINTS,
            run.record,
            run.base.fingerprint,
            lambda: validation.stopping if validation else stopping,
            config.checkpoint_every,
            math.inf if together else config.checkpoint_seconds,
            placement.fetch,
            writes,
        )
        list_of_hooks = [
            hooks.log_metrics(record, schedule),
            *([validation] if validation else []),
            keep,
            display,
        ]
        if not stopping.exhausted:
            step = make_step(loss, optimizer, run.record["placement"]["accumulate"])
            step = placement.compile(step, params, state)
            state = fit(step, state, loader, list_of_hooks, steps=config.steps, agree=placement.any)
    if cache is not None and (damage := cache.describe_damage()):
        display.say(damage)
    return _finish(run, state, validation.stopping if validation else stopping, display.say)


def _cache(run: _Run) -> EmbeddingCache | None:
    """A cache if the delta leaves the encoder alone and images come without random changes."""
    config = run.config
    if config.embeddings == "off" or config.augment in ("full", "upright") or touches_encoder(run.delta):
        return None
    encode = functools.partial(jax.jit(run.adapted.encode), jax.device_put(run.base.params), run.delta)
    settings = f"{run.base.fingerprint} {config.model} {config.dtype}"
    return make_cache(encode, settings, config.embeddings, cache_dir())


def _restore(
    run: _Run, start: TrainState, cache: EmbeddingCache | None, say: Callable[[str], None]
) -> tuple[TrainState, Loader, EarlyStopping]:
    config, folder = run.config, run.config.out
    augment = config.augment
    if augment == "auto":
        augment = "none" if cache else usual_augmentation(run.data.source.dataset.dimension)
    placement = run.placement
    loader = run.data.loader(augment, (placement.process, placement.processes))
    found = checkpoint.read(folder / run_directory.CHECKPOINTS, start, run.base.fingerprint, say)
    placement.same(found.step if found else 0, "the step of the last checkpoint")
    if placement.process == 0:
        run_directory.truncate_metrics(folder, found.step if found else 0, say)
    if found:
        loader.set_state(found.loader_state)
        say(f"resuming at step {found.step} of {config.steps}")
    state, stopping = (found.state, found.stopping) if found else (start, EarlyStopping(config.patience))
    embedded = MappedLoader(loader, lambda batch: embed(batch, cache)) if cache else loader
    return state, MappedLoader(embedded, placement.put_share), stopping


@contextlib.contextmanager
def _recorder(config: AdaptConfig, writes: bool) -> Iterator[hooks.Recorder]:
    with contextlib.ExitStack() as stack:
        if not writes:
            yield hooks.to_all()
            return
        recorders = [hooks.to_file(config.out)]
        if config.tensorboard:
            recorders.append(stack.enter_context(hooks.to_tensorboard(config.out / "tensorboard")))
        yield hooks.to_all(*recorders)


def _validation(
    run: _Run,
    params: Params,
    loss: Any,
    cache: EmbeddingCache | None,
    stopping: EarlyStopping,
    record: hooks.Recorder,
) -> hooks.Validation | None:
    data, placement = run.data.validation(), run.placement
    if not run.config.validate_every or not data.batches:
        return None
    overlap = make_overlap(run.adapted, cached=cache is not None)

    def prepare(batch: Batch) -> Batch:
        return placement.put_whole(embed(batch, cache) if cache else batch)

    def counts(*arguments: Any) -> Any:
        return placement.fetch(overlap(*arguments))

    score = make_validation(params, loss, counts, data, prepare)
    return hooks.Validation(score, run.config.validate_every, stopping, record, placement.fetch)


def _finish(run: _Run, state: TrainState, stopping: EarlyStopping, say: Callable[[str], None]) -> RunResult:
    folder = run.config.out
    delta = stopping.delta if stopping.delta is not None else run.placement.fetch(state.delta)
    path = folder / run_directory.DELTA
    if run.placement.process == 0:
        metadata = delta_metadata(run.config.model, run.config.adapter, folder, run.data.source.dataset)
        artifacts.save_delta(path, delta, metadata)
    kept = None if stopping.delta is None else stopping.best
    if kept is not None:
        say(f"kept the delta of step {stopping.step}, validation Dice {kept:.4f}")
    say(f"delta: {path}; settings, metrics and checkpoints beside it in {folder}")
    return RunResult(folder, path, int(state.step), kept, run.size.trained, run.size.total, run.size.bytes)
