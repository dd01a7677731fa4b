"""Shape-only training step for planning (``jax.eval_shape``): no array of the model is ever made."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medvfm_jax import systems
from medvfm_jax.adapters import Count, touches_encoder
from medvfm_jax.adapters.training_options import rate_of
from medvfm_jax.models import catalog
from medvfm_jax.models.model import Model
from medvfm_jax.parallel.rules import Rules
from medvfm_jax.parallel.shardings import batch_shardings, param_shardings, shard_step, state_shardings
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import ModelConfig
from medvfm_jax.settings.plan import Training
from medvfm_jax.train.assemble import Assembled, adapt_base, check_stacked
from medvfm_jax.train.base_format import in_format
from medvfm_jax.train.base_model import Base, entry_of, model_shapes
from medvfm_jax.train.optimizer import make_optimizer, make_schedule
from medvfm_jax.train.rank_allocation import with_rank_allocation
from medvfm_jax.train.seen_at_once import asked_shape, check_shape, slab_depth
from medvfm_jax.train.state import TrainState, init_state
from medvfm_jax.train.step import LossFn, Step, make_step
from medvfm_jax.train.task import make_loss
from medvfm_jax.types import Batch, ModelSpec, Params, Prompts

KEEP = tuple(catalog.KEEP)
AS_IN_ADAPT = (
    "model", "adapter", "set", "objective", "image_size", "window", "tile", "dtype", "base_dtype", "keep", "scan_blocks"
)  # fmt: skip


class Abstract(NamedTuple):
    """loss and step to trace, and their arguments as shapes without shardings."""

    loss: LossFn
    step: Step
    params: Params
    state: TrainState
    batch: Batch
    optimizer: Any
    size: Count


def abstract_training(config: Training) -> Abstract:
    """Everything ``make_step`` would be given, as shapes; raises what the catalogue and the adapters raise, BadPlan.

    Where ``config.accumulate`` is None the batch is whole.
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise BadPlan(f"dtype is {config.dtype}; expected float32 or bfloat16.")
    if config.keep not in KEEP:
        raise BadPlan(f"keep is {config.keep}; expected one of {', '.join(KEEP)}.")
    parts = 1 if config.accumulate is None else config.accumulate
    for name, count in (("global_batch", config.global_batch), ("accumulate", parts)):
        if count < 1:
            raise BadPlan(f"{name} is {count}; expected at least 1.")
    if config.global_batch % parts:
        raise BadPlan(f"A batch of {config.global_batch} cannot be cut into {parts} equal parts.")
    entry, system = entry_of(config.model), systems.SYSTEMS[config.adapter]
    queries = _prompts(config, entry.spec, system)
    wanted = _as_adapt(config, entry.spec, queries)
    wanted.check_start(entry, "adapter", config.adapter)
    shape = asked_shape(wanted, entry, channels=1)

    def put_around(base: Base) -> Assembled:
        return adapt_base(
            base, wanted, config.adapter, system, classes=config.classes, seed=0, depth=slab_depth(wanted),
            tile=config.tile,
        )  # fmt: skip

    build = functools.partial(
        model_shapes, config.model, classes=config.classes, dtype=config.dtype, keep=config.keep, shape=shape
    )
    assembled = put_around(build(scan_blocks=config.scan_blocks))
    check_shape(shape, assembled.base.model.spec, config.adapter)
    if config.scan_blocks:
        plain = put_around(build())
        check_stacked(assembled.delta, plain.delta, config.adapter, config.model)
    model, params = assembled.base.model, in_format(assembled.base.params, config.base_dtype)
    adapter = assembled.adapted.adapter.config
    optimizer = make_optimizer(make_schedule("cosine", 1e-4, 1000, 50), rate=rate_of(adapter))
    optimizer = with_rank_allocation(optimizer, adapter, 1000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), assembled.delta, key=key)
    cached = (
        config.embeddings != "off"
        and config.tile is None
        and model.spec.resize != "none"
        and not touches_encoder(assembled.delta)
    )
    loss = make_loss(assembled.adapted, assembled.objective, cached=cached, training=True)
    step = make_step(loss, optimizer, parts)
    batch = _batch(config, model, queries)
    if cached:
        one = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
        embedding = jax.eval_shape(assembled.adapted.encode, params, assembled.delta, one)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((config.global_batch, *x.shape), x.dtype), embedding
        )
        batch = batch._replace(image=shapes)
    return Abstract(loss, step, params, state, batch, optimizer, assembled.size)


def lower(training: Abstract, rules: Rules, mesh: Mesh, sums: str = "float32") -> jax.stages.Lowered:
    """The step of a whole mesh, ready to be compiled; the devices may be those of a topology that is not here.

    sums: see ``shard_step``.
    """
    shardings = (
        param_shardings(rules, mesh, training.params),
        state_shardings(rules, mesh, training.state, training.optimizer),
        batch_shardings(mesh, training.batch),
    )
    step = shard_step(training.step, *shardings, sums)
    return step.trace(training.params, training.state, training.batch).lower()


def _prompts(config: Training, spec: ModelSpec, system: systems.System) -> int:
    """Prompts per image: as asked, or what `adapt` takes."""
    if config.prompts_per_image is not None:
        if config.prompts_per_image < 0:
            raise BadPlan(f"prompts_per_image is {config.prompts_per_image}; expected at least 0.")
        return config.prompts_per_image
    free = spec.task != "promptable" or system.prompts == "none"
    return 0 if free else ModelConfig.prompts_per_image


def _as_adapt(config: Training, spec: ModelSpec, queries: int) -> AdaptConfig:
    """The settings of `adapt` that train the same; raises BadConfig for what it refuses."""
    one = "point" if spec.prompts == ("point",) else "box"  # of either two tokens
    return AdaptConfig(
        "-", prompt=one if queries else "none", **{name: getattr(config, name) for name in AS_IN_ADAPT}
    )


def _batch(config: Training, model: Model, prompts_per_image: int) -> Batch:
    """Shapes of a batch as the loader yields it."""
    images, spec, queries = config.global_batch, model.spec, (prompts_per_image,)
    prompts = None
    if spec.task == "promptable":
        prompts = Prompts(
            jax.ShapeDtypeStruct((images, *queries, 2, spec.rank), jnp.float32),
            jax.ShapeDtypeStruct((images, *queries, 2), jnp.int32),
        )
    else:
        queries = ()
    masks = queries or (spec.classes + spec.distance_map,)
    return Batch(
        jax.ShapeDtypeStruct((images, *spec.input_shape), jnp.float32),
        prompts,
        jax.ShapeDtypeStruct((images, *masks, *spec.logits_shape), jnp.float32),
        jax.ShapeDtypeStruct((images, *queries), jnp.float32),
    )
