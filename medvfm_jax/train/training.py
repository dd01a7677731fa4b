"""From settings to a trained delta in memory: `resolve` opens data and weights, `train` takes the steps.

Nothing here knows a run directory; `adapt` adds one, with its checkpoints and metrics, as hooks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from numpy.typing import NDArray

from medvfm_jax import systems
from medvfm_jax.adapters import touches_encoder
from medvfm_jax.adapters.training_options import rate_of
from medvfm_jax.data import Split, usual_augmentation
from medvfm_jax.data.check import DatasetCheck
from medvfm_jax.data.site_tasks import site_tasks
from medvfm_jax.fetch import cache_dir
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.train.assemble import Assembled, assemble
from medvfm_jax.train.base_format import in_format
from medvfm_jax.train.base_model import entry_of
from medvfm_jax.train.case_selection import with_selected
from medvfm_jax.train.checkpoint import Checkpoint
from medvfm_jax.train.data_check import (
    about,
    check_dimensions,
    check_split,
    check_synthesis,
    recorded_objects,
)
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.embedding_bank import BANK, EmbeddingBank, fill_bank, input_of, loss_from_bank
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed, encoder_settings, make_cache
from medvfm_jax.train.gradient_start import with_gradient_start
from medvfm_jax.train.input_start import with_input_start
from medvfm_jax.train.loop import Hook, Loader, MappedLoader, fit
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.preparation import prepared, recorded_preparation
from medvfm_jax.train.rank_allocation import with_rank_allocation
from medvfm_jax.train.seen_at_once import asked_shape, slab_depth
from medvfm_jax.train.state import TrainState, init_state
from medvfm_jax.train.step import LossFn, make_step
from medvfm_jax.train.task import make_loss, make_loss_and_overlap
from medvfm_jax.train.task_of_site import with_site_tasks
from medvfm_jax.train.training_data import TrainingData, open_split, training_data
from medvfm_jax.train.validation import Validation, make_validation
from medvfm_jax.train.wall_time import WallTime
from medvfm_jax.types import Batch, Delta, Params

AGREE_EVERY = 10  # steps between two questions whether a process was asked to end; each waits for all devices


class Goal(NamedTuple):
    """What the steps of a run minimise, where that is not the loss of its labels.

    Attributes:
        loss: given ``params``, the delta, a batch and a key.
        params: what the loss is given beside the delta.
        batches: the run's loader -> one of batches that the loss takes.
        updates: the run's optimiser -> one for this loss.
        start: the delta before the first step -> what is trained, which may hold more than the model takes.
        model: what is trained -> the delta that is validated and kept.
    """

    loss: LossFn
    params: Any
    batches: Callable[[Loader], Loader]
    updates: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    start: Callable[[Delta], Delta] = lambda delta: delta
    model: Callable[[Delta], Delta] = lambda trained: trained


class Run(NamedTuple):
    """Everything resolved, nothing trained yet.

    Attributes:
        config: settings as given.
        record: the settings and what they were resolved to, as JSON can hold it.
        assembled: model, adapter, frozen weights and the delta at its start.
        data: examples of training and validation, and the split they come from.
        checked: what the data check found.
        accumulate: parts of a batch, one after the other.
        placement: one device, or a mesh.
        goal: None to minimise the loss of the labels.
    """

    config: AdaptConfig
    record: dict[str, Any]
    assembled: Assembled
    data: TrainingData
    checked: DatasetCheck
    accumulate: int
    placement: Placement
    goal: Goal | None = None

    @property
    def schedule(self) -> optax.Schedule:
        """Step -> learning rate."""
        config, rate = self.config, self.record["resolved"]["learning_rate"]
        return make_schedule(config.schedule, rate, config.steps, config.warmup_steps())

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """What turns a gradient of the delta into a step."""
        config, adapter = self.config, self.assembled.adapted.adapter.config
        optimizer = make_optimizer(
            self.schedule, config.weight_decay, config.clip_norm or None, rate_of(adapter)
        )
        optimizer = with_rank_allocation(optimizer, adapter, config.steps)
        return optimizer if self.goal is None else self.goal.updates(optimizer)

    def start(self) -> TrainState:
        """The state before the first step."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2)
        delta = self.assembled.delta
        return init_state(delta if self.goal is None else self.goal.start(delta), self.optimizer, key)

    def model(self, trained: Delta) -> Delta:
        """What is trained -> the delta that is validated and kept."""
        return trained if self.goal is None else self.goal.model(trained)


class Trained(NamedTuple):
    """What training leaves.

    Attributes:
        delta: of the best validation, without validation the last; on the host.
        step: steps taken.
        val_dice: of the delta kept, None without validation.
        state: last training state, to go on from.
        stopping: early stopping at that state.
    """

    delta: Delta
    step: int
    val_dice: float | None
    state: TrainState
    stopping: EarlyStopping


def resolve(
    config: AdaptConfig, placement: Placement | None = None, display: ProgressDisplay | None = None
) -> Run:
    """Open data and weights, check every case, build the model with its adapter; nothing is written.

    Args:
        config: settings.
        placement: many devices and processes, see ``parallel.Placement``; None: one device.
        display: shows how far the check is.

    Returns:
        What ``train`` takes.

    Raises:
        MedvfmError: what a user can cause: settings, data, weights.
    """
    placement, display = placement or Placement(), display or ProgressDisplay(title="adapt")
    entry, system = entry_of(config.model), systems.SYSTEMS[config.adapter]
    config.check_start(entry, "adapter", config.adapter)
    accumulate = config.resolved_accumulate(entry, jax.default_backend(), placement.parts)
    placement.check_batch(config.batch_size, accumulate)
    source = open_split(
        config.data,
        seed=config.seed,
        val=config.val_fraction,
        test=config.test_fraction,
        train_cases=config.train_cases if config.select_cases == "random" else None,
        fold=config.fold,
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch,
        follow_links=config.follow_links,
        objects=config.objects,
        annotated=config.annotated,
    )
    check_synthesis(config.synthesis, config, entry, config.adapter, system)
    checked = check_split(source, skip_bad=config.skip_bad, track=display.track, say=display.say)
    check_dimensions(checked, source.dataset, config, entry, config.adapter, system)
    bad = checked.bad_cases()
    if config.select_cases != "random":
        source = with_selected(source, config, bad, track=display.track)
    described = [case for case in _described(source.split, config.fold) if case not in bad]
    source = source._replace(dataset=prepared(source.dataset, described, config, entry, config.intensity))
    classes = source.dataset.classes
    assembled = assemble(
        config,
        config.adapter,
        system,
        classes=classes,
        seed=config.seed,
        offline=config.offline,
        keep=config.keep,
        shape=asked_shape(config, entry, len(source.dataset.channel_names)),
        depth=slab_depth(config),
        tile=config.tile,
        scan_blocks=config.scan_blocks,
        tasks=site_tasks(source.dataset),
    )
    source = with_site_tasks(source, assembled, display.say)
    prompt, size = assembled.prompt, assembled.size
    checked = about(checked, prompt, assembled.base.model.spec, source.dataset.preparation)
    data = training_data(source, assembled.base.model.spec, prompt, config)
    record = to_json(config) | {
        "resolved": {
            "data": source.dataset.source,
            "checked": checked.record(),
            **assembled.record(),
            **recorded_preparation(source.dataset),
            "objects": recorded_objects(source.dataset, prompt),
            "learning_rate": config.resolved_learning_rate(system, entry),
            "trained": {"parameters": size.trained, "total": size.total, "bytes": size.bytes},
            "classes": classes,
            "labels": dict(source.dataset.labels),
            "data_sha256": source.sha256,
            "split": source.split_record(),
        },
        "placement": placement.describe() | {"accumulate": accumulate},
    }
    kept = assembled.base._replace(params=placement.keep(in_format(assembled.base.params, config.base_dtype)))
    return Run(config, record, assembled._replace(base=kept), data, checked, accumulate, placement)


def _described(split: Split, fold: int | None) -> list[str]:
    """Cases whose spacing and intensities say how volumes are prepared: the same in every fold, as in nnU-Net."""
    return [*split.train] if fold is None else sorted((*split.train, *split.val))


def train(
    run: Run,
    hooks: Sequence[Hook] = (),
    *,
    start: Checkpoint | None = None,
    say: Callable[[str], None] = lambda text: None,
    clock: WallTime | None = None,
) -> Trained:
    """Take the steps of a run; only ``hooks`` write, see ``train.hooks``.

    Args:
        run: from ``resolve``.
        hooks: called after every step, in order.
        start: a checkpoint to go on from exactly.
        say: told of the embedding cache, and before anything is compiled.
        clock: measures what the time is spent on.

    Returns:
        The delta kept, and the state to go on from.

    Raises:
        NonFiniteLoss: naming the step.
        LoaderExhausted: the data ended too early.
        MedvfmError: what hooks raise.
    """
    placement, assembled = run.placement, run.assembled
    cache = cache_of(run)
    if cache is not None:
        say("the encoder is frozen: each image is encoded once and its embedding kept")
    asked = {"objective": assembled.objective, "cached": cache is not None}
    bank = bank_of(run, cache)
    if bank is not None:
        say(bank.describe())
    loader = loader_of(run, cache, bank)
    if run.goal is None:
        loss, given = make_loss(assembled.adapted, **asked, training=True), assembled.base.params
        if bank is not None and bank.array is not None:
            loss, given = loss_from_bank(loss, bank.dtype), {**given, BANK: bank.array}
    else:
        loss, given, loader = run.goal.loss, run.goal.params, run.goal.batches(loader)
    loader = MappedLoader(loader, placement.put_share)
    state, stopping = run.start(), EarlyStopping(run.config.patience)
    if start is not None:
        loader.set_state(start.loader_state)
        state, stopping = start.state, start.stopping
    optimizer, given = run.optimizer, placement.put_params(given)
    shares = run.goal is None and BANK not in given
    params = given if shares else placement.put_params(assembled.base.params)
    if start is None:
        adapter = assembled.adapted.adapter.config
        delta = with_gradient_start(adapter, given, state.delta, loss, loader, run.accumulate)
        state = state._replace(delta=with_input_start(adapter, given, delta, loss, loader))
    state = placement.put_state(state, optimizer)
    step = placement.compile(make_step(loss, optimizer, run.accumulate), given, state)
    validation = _validation(run, params, cache)
    say("compiling the training step ...")
    fitted = fit(
        step, state, loader, hooks,
        steps=run.config.steps, validation=validation, stopping=stopping, agree=placement.any,
        agree_every=1 if placement.processes == 1 else AGREE_EVERY, clock=clock,
    )  # fmt: skip
    if cache is not None and (damage := cache.describe_damage()):
        say(damage)
    state, stopping = fitted
    best = stopping.delta
    delta = placement.fetch(run.model(state.delta)) if best is None else best
    return Trained(delta, int(state.step), None if best is None else stopping.best, state, stopping)


def cache_of(run: Run) -> EmbeddingCache | None:
    """A cache if the delta leaves the encoder alone and images come without random changes, tiles or patches."""
    config, (base, adapted, delta, *_) = run.config, run.assembled
    if config.tile is not None or base.model.spec.resize == "none":  # patches lie elsewhere each time
        return None
    changed = config.augment in ("full", "upright") or config.synthesis > 0
    if config.embeddings == "off" or changed or touches_encoder(delta):
        return None
    like = functools.partial(jax.jit(adapted.encode), *jax.device_put((base.params, delta)))

    def encode(image: NDArray) -> NDArray:
        return jax.device_get(like(jax.device_put(image)))

    rounded = "" if config.base_dtype == "float32" else f" base {config.base_dtype}"
    settings = encoder_settings(base.fingerprint, config, run.assembled.transform) + rounded
    return make_cache(encode, settings, config.embeddings, cache_dir(), like)


def bank_of(run: Run, cache: EmbeddingCache | None) -> EmbeddingBank | None:
    """The embeddings of all training examples on the device, where the settings ask for it."""
    if run.config.embeddings != "device":
        return None
    if cache is None or run.config.augment not in ("auto", "none"):
        raise BadConfig(
            "--embeddings device holds what a frozen encoder makes of whole, unchanged images, and this run trains "
            "inside the encoder or changes its images (--augment, --synthesis, tiles, patches): leave --embeddings out."
        )
    if run.placement.parts > 1 or run.goal is not None:
        raise BadConfig(
            "--embeddings device is for one device and the loss of labels; over a mesh, or with a recipe, choose "
            "--embeddings memory."
        )
    image = functools.partial(input_of, run.data.source.dataset, spec=run.data.spec)
    return fill_bank(run.data.train, image, cache, run.config.embeddings_dtype, cache_dir() / "embeddings")


def loader_of(run: Run, cache: EmbeddingCache | None, bank: EmbeddingBank | None = None) -> Loader:
    """Batches of a run on the host, embeddings or their rows in place of images where there is a cache."""
    augment, placement = run.config.augment, run.placement
    if augment == "auto":
        augment = "none" if cache else usual_augmentation(run.data.source.dataset.dimension)
    share, image_fn = (placement.process, placement.processes), None if bank is None else bank.image
    loader = run.data.loader(augment, share, run.config.synthesis, image_fn)
    return MappedLoader(loader, lambda batch: embed(batch, cache)) if cache and bank is None else loader


def _validation(run: Run, params: Params, cache: EmbeddingCache | None) -> Validation | None:
    data, placement = run.data.validation(), run.placement
    if not run.config.validate_every or not data.batches:
        return None
    adapted, objective = run.assembled.adapted, run.assembled.objective
    measure = make_loss_and_overlap(adapted, objective, cached=cache is not None)

    def prepare(batch: Batch) -> Batch:
        return placement.put_whole(embed(batch, cache) if cache else batch)

    def fetched(*arguments: Any) -> Any:
        return placement.fetch(measure(*arguments))

    score = make_validation(params, fetched, data, prepare)
    return Validation(score, run.config.validate_every, placement.fetch, lambda state: run.model(state.delta))
