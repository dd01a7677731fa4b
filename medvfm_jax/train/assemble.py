"""From settings to something that trains: a model, its transform, the adapter around it, the start of the delta."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax

from medvfm_jax import systems
from medvfm_jax.adapters import (
    AdaptedModel,
    Count,
    NoSuchSite,
    WrongSite,
    count,
)
from medvfm_jax.adapters.task_tables import with_tasks
from medvfm_jax.adapters.training_options import check_ranks
from medvfm_jax.models.scan import unstack_delta
from medvfm_jax.models.transforms import seeded
from medvfm_jax.settings.groups import ModelConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.systems import System
from medvfm_jax.systems.fitting import why
from medvfm_jax.train.base_model import (
    Base,
    entry_of,
    is_abstract,
    load_base,
    model_shapes,
    transformed,
    with_adapter,
)
from medvfm_jax.train.seen_at_once import (
    check_shape,
    recorded_shape,
    with_depth,
    with_tile,
)
from medvfm_jax.types import Delta, ModelSpec

NO_TASKS: Mapping[str, int] = {}


class Assembled(NamedTuple):
    """A model with its adapter and what it is trained for; nothing is trained yet.

    base: as the system transforms it.  delta: at the start.  prompt: simulated in training, "none" for none.
    objective: name of the loss, see ``train.task``.  transform, adapter: JSON-able, from which both are built again.
    shape: of a patch or picture that the base was built for; None: the model's own size of pictures.
    """

    base: Base
    adapted: AdaptedModel
    delta: Delta
    prompt: str
    objective: str
    transform: dict[str, Any] | None
    adapter: dict[str, Any]
    shape: tuple[int, ...] | None = None

    @property
    def size(self) -> Count:
        """How many numbers train."""
        return count(self.delta, self.base.params)

    def with_adapter(self, adapter: dict[str, Any], seed: int) -> "Assembled":
        """The same with another adapter, given by its JSON-able configuration."""
        adapted, delta = _with_start(self.base, adapter, seed)
        return self._replace(adapted=adapted, delta=delta, adapter=adapter)

    def record(self) -> dict[str, Any]:
        """For ``config.json``."""
        return {
            "prompt": self.prompt,
            "transform": self.transform,
            "adapter": self.adapter,
            "objective": self.objective,
            "fingerprint": self.base.fingerprint,
            **recorded_shape(self.shape),
        }


def assemble(
    config: ModelConfig,
    name: str,
    system: System,
    *,
    classes: int,
    seed: int,
    offline: bool = False,
    keep: str = "everything",
    shape: tuple[int, ...] | None = None,
    depth: int | None = None,
    tile: int | None = None,
    elsewhere: Collection[str] = (),
    scan_blocks: bool = False,
    tasks: Mapping[str, int] = NO_TASKS,
) -> Assembled:
    """Load the weights and put the system's parts around the model.

    name: of the system, stored with the adapter.  classes: labels with the background.  seed: of initial values.
    keep, shape: see ``load_base``.  depth: slices of a slab, if not the system's own.  tile: side of the squares that
    pictures are cut into.  elsewhere: see ``systems.configure``.  scan_blocks: stacked, see
    ``models.scan``.  tasks: of sites, for adapters that know tasks.
    Raises BadConfig, and what weights, transforms and adapters raise.
    """
    base = load_base(
        config.model,
        classes=classes,
        seed=seed,
        dtype=config.dtype,
        file=config.weights,
        offline=offline,
        keep=keep,
        shape=shape,
        scan_blocks=scan_blocks,
    )
    asked = {"classes": classes, "seed": seed, "depth": depth, "tile": tile, "elsewhere": elsewhere}
    asked["tasks"] = tasks
    assembled = adapt_base(base, config, name, system, **asked)._replace(shape=shape)
    check_shape(shape, assembled.base.model.spec, name)
    if scan_blocks:
        shapes = model_shapes(config.model, classes=classes, dtype=config.dtype, shape=shape)
        plain = adapt_base(shapes, config, name, system, **asked)
        check_stacked(assembled.delta, plain.delta, name, config.model)
    return assembled


def check_stacked(delta: Delta, plain: Delta, adapter: str, model: str) -> None:
    """Raise BadConfig unless a delta of stacked blocks can be told apart into one of plain blocks."""
    apart = jax.eval_shape(lambda d: unstack_delta(d, entry_of(model).group), delta)
    found, expected = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (apart, plain))
    if found != expected:
        raise BadConfig(
            f"The arrays of '{adapter}' on stacked blocks are not those of single ones; leave --scan-blocks out."
        )


def adapt_base(
    base: Base,
    config: ModelConfig,
    name: str,
    system: System,
    *,
    classes: int,
    seed: int,
    depth: int | None = None,
    tile: int | None = None,
    elsewhere: Collection[str] = (),
    tasks: Mapping[str, int] = NO_TASKS,
) -> Assembled:
    """The system's parts around a model, as ``assemble``; where ``base.params`` are shapes, so is the delta."""
    spec = base.model.spec
    if spec.task == "features":
        system = systems.for_features(system)
    prompt = config.resolved_prompt(system, "semantic" if spec.task == "features" else spec.task)
    check_prompts(spec, prompt)
    change = with_depth(system.transform(spec, prompt, classes), name, depth)
    transform = seeded(with_tile(change, tile), seed)
    base = transformed(base, transform)
    options = systems.parse_assignments(config.set)
    adapter = with_tasks(systems.configure(name, system, base.model.spec, options, elsewhere), tasks)
    objective = config.resolved_objective(system, base.model.spec.task)
    if (objective == "instances") != base.model.spec.distance_map:
        raise BadConfig(
            f"System '{name}' on model '{config.model}' gives {'a' if base.model.spec.distance_map else 'no'} distance "
            f"map, which objective={objective} does not fit; leave out --objective."
        )
    try:
        adapted, delta = _with_start(base, adapter, seed)
        check_ranks(adapted.adapter.config, delta)
    except (NoSuchSite, WrongSite) as error:
        raise type(error)(f"System '{name}' does not fit model '{config.model}': {why(error)}") from error
    return Assembled(base, adapted, delta, prompt, objective, transform, adapter)


def check_prompts(spec: ModelSpec, prompt: str) -> None:
    """Raise BadConfig for prompts in volumes of a kind that the model was not built for."""
    kinds = {"none": (), "mixed": ("box", "point")}.get(prompt, (prompt,))
    lacking = [kind for kind in kinds if kind not in spec.prompts]
    if spec.rank == 3 and lacking:
        offered = [*(f"--prompt {kind}" for kind in spec.prompts), "--prompt none"]
        raise BadConfig(f"{spec.name} takes no {lacking[0]} prompts in volumes; use {' or '.join(offered)}.")


def _with_start(base: Base, adapter: dict[str, Any], seed: int) -> tuple[AdaptedModel, Delta]:
    adapted, key = with_adapter(base, adapter), jax.random.fold_in(jax.random.key(seed), 1)
    if is_abstract(base.params):
        return adapted, jax.eval_shape(adapted.init, key, base.params)
    return adapted, adapted.init(key, base.params)
