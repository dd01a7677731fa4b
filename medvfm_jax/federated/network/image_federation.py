"""A federation that adapts a segmentation model: from settings, equal on all nodes, to `Agreement`, `Site` and result.

A hospital brings a folder of labelled images; the coordinator brings none.
"""

import dataclasses
import logging
import math
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax import local_paths, systems
from medvfm_jax.adapters.task_tables import knows_tasks
from medvfm_jax.data import Dataset, PromptConfig, make_loader
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.codecs import make_codec
from medvfm_jax.federated.codecs.feedback import error_feedback
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.kept_optimizer import kept
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.personal_parts import join_personal
from medvfm_jax.federated.core.records import Algorithm, Privacy, Shard, Tree
from medvfm_jax.federated.network.agreement import Agreement, contract
from medvfm_jax.federated.network.coordinator import Progress
from medvfm_jax.federated.network.site import Site
from medvfm_jax.federated.privacy import Guarantee
from medvfm_jax.federated.privacy.discrete_accounting import account_discrete, discrete_with_epsilon
from medvfm_jax.federated.secure.secure_sum import SecureSum, distributed_noise, fixed_point
from medvfm_jax.settings.groups import TrainingConfig
from medvfm_jax.train.assemble import Assembled, assemble
from medvfm_jax.train.base_model import Base, entry_of
from medvfm_jax.train.optimizer import make_optimizer
from medvfm_jax.train.seen_at_once import asked_shape, recorded_shape, slab_depth
from medvfm_jax.train.step import LossFn
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training_data import TrainingData, open_split, training_data
from medvfm_jax.types import Batch, Delta, ModelSpec, Prompts
from medvfm_jax.weights import artifacts

# Settings that say something with secure aggregation alone.
_LOG = logging.getLogger(__name__)
_SECURE = frozenset((
    "secure", "images", "secure_share", "secure_reach", "noise", "noise_epsilon", "noise_delta", "noise_clip", "rounds",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImageFederation:
    """What is trained, and how; every node must be given the same."""

    model: str = "lite-medsam"
    preset: str = "decoder"
    prompt: str = "box"
    labels: str = "background,foreground"
    """Names of the values 0, 1, ... in the masks; every site's data must have the same."""
    channels: str = ""
    """Names of the channels of volumes, such as "CT", which means Hounsfield units; every site's data must agree."""
    window: str = ""
    """What a model of volumes sees at once, as `--window` of ``medvfm adapt``: "3" slices of a slab, or "16 64 64"."""
    algorithm: str = "fedavg"
    codec: str = "int8"
    remember: bool = False
    """Whether each site adds what the codec left out to its next update (error feedback)."""
    secure: bool = False
    """Whether the server opens only the sum of the updates (secure aggregation); needs codec "identity"."""
    images: str = ""
    """With secure aggregation: "name=number ..." of images that each site declared."""
    secure_share: float = 0.67
    """Share of the sites that must answer for a sum to be opened, above one half."""
    secure_reach: float = 8.0
    """Largest absolute value of an update that the sum can carry; a site beyond it is left out by name."""
    noise: str = "none"
    """Noise that the sites add in whole numbers, "discrete_gaussian" or "skellam", so that what the server opens is
    differentially private for each site; "none" for none."""
    noise_epsilon: float = 8.0
    """epsilon over all ``rounds``, with the noise of as many sites as must answer."""
    noise_delta: float = 1e-5
    noise_clip: float = 1.0
    """l2 norm to which a site's update is clipped."""
    rounds: int = 20
    """Rounds that the noise is made for."""
    keep_optimizer: bool = False
    """Whether each site keeps its optimizer's state from round to round instead of starting it anew."""
    local_steps: int = 5
    batch_size: int = 2
    prompts_per_image: int = 4
    learning_rate: float = 1e-3
    augment: str = "flips"
    test_fraction: float = 0.2
    """Share of the patients of each site that is never trained on."""
    seed: int = 0

    @property
    def numbered_labels(self) -> dict[str, int]:
        """{"background": 0, ...}."""
        return {name: value for value, name in enumerate(self.labels.split(","))}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """("CT",), or () for pictures."""
        return tuple(self.channels.split(",")) if self.channels else ()

    @property
    def sides(self) -> tuple[int, ...]:
        """``window`` in numbers; raises BadFederation."""
        sides = self.window.split()
        if not all(side.isdigit() for side in sides):
            raise BadFederation(f"window is '{self.window}', expected one whole number, or three.")
        return tuple(map(int, sides))

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "ImageFederation":
        """From a flat table such as a run configuration, other keys are ignored; raises BadFederation."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        chosen = {name.replace("-", "_"): value for name, value in settings.items()}
        chosen = {name: value for name, value in chosen.items() if name in fields}
        for name, value in chosen.items():
            if type(value) is int and fields[name] is float:
                chosen[name] = float(value)
            elif type(value) is not fields[name]:
                raise BadFederation(f"{name} is {value!r}, expected {fields[name].__name__}.")
        return cls(**chosen)


class Prepared(NamedTuple):
    """A federation whose weights are in memory; guarantee: what noise of the sites amounts to after all rounds."""

    settings: ImageFederation
    assembled: Assembled
    agreement: Agreement
    guarantee: Guarantee | None = None


def prepare(settings: ImageFederation, weights: Path | None = None, offline: bool = False) -> Prepared:
    """Load the base weights (``weights``: a local file) and build the agreement.  Raises MedvfmError."""
    config = TrainingConfig(
        "",
        model=settings.model,
        prompt=settings.prompt,
        prompts_per_image=settings.prompts_per_image,
        window=settings.sides,
        weights=weights,
    )
    classes, system = len(settings.numbered_labels), systems.SYSTEMS[settings.preset]
    model = entry_of(settings.model)
    config.check_start(model, "preset", settings.preset)
    assembled = assemble(
        config,
        settings.preset,
        system,
        classes=classes,
        seed=settings.seed,
        offline=offline,
        shape=asked_shape(config, model, len(settings.channel_names)),
        depth=slab_depth(config),
    )
    algorithm_catalog.check_rates(assembled.adapter)
    if knows_tasks(assembled.adapter):
        raise BadFederation(
            f"preset={settings.preset} needs to know the tasks of all sites, and sites on a network do not tell each "
            "other: choose another preset, or federate in one place."
        )
    base, codec = assembled.base, make_codec(settings.codec)
    agreed = {name: value for name, value in vars(settings).items() if settings.secure or name not in _SECURE}
    agreed |= {"weights": base.fingerprint}
    agreement = Agreement(
        _algorithm(settings, make_loss(assembled.adapted, assembled.objective, training=True), base),
        assembled.delta,
        _example(settings, base.model.spec),
        error_feedback(codec) if settings.remember else codec,
        agreed,
    )
    if settings.secure:
        secure, guarantee = _secure(settings, agreement)
        return Prepared(settings, assembled, agreement._replace(secure=secure), guarantee)
    if settings.noise != "none":
        raise BadFederation(f"noise={settings.noise} is noise of the sites: it needs secure = true.")
    return Prepared(settings, assembled, agreement)


def _secure(settings: ImageFederation, agreement: Agreement) -> tuple[SecureSum, Guarantee | None]:
    """Secure aggregation as configured, and with noise of the sites what it guarantees."""
    declared = named_numbers("images", settings.images)
    n = len(declared)
    answered = max(math.ceil(settings.secure_share * n), n // 2 + 1)
    if settings.noise == "none":
        heaviest = 1.0 if agreement.algorithm.weights == "equal" else float(max(declared.values()))
        return fixed_point(n, answered, settings.secure_reach, heaviest), None
    if settings.noise not in ("discrete_gaussian", "skellam"):
        raise BadFederation(f"noise is {settings.noise!r}, expected none, discrete_gaussian or skellam.")
    rounds, delta = settings.rounds, settings.noise_delta
    mechanism = discrete_with_epsilon(
        Privacy(settings.noise_clip, 1.0, n, neighbours="zero out one"),
        settings.noise_epsilon,
        size=sum(x.size for x in jax.tree.leaves(contract(agreement).report.upload)),
        rounds=rounds,
        delta=delta,
        answered=answered,
        noise="skellam" if settings.noise == "skellam" else "gaussian",
    )
    guarantee = account_discrete(mechanism, rounds=rounds, delta=delta, answered=answered)
    return distributed_noise(mechanism, answered, rounds), guarantee


def named_numbers(setting: str, text: str) -> dict[str, int]:
    """ "name=number ..." -> {name: number}; raises BadFederation naming the setting."""
    pairs = [pair.partition("=") for pair in text.split()]
    if not pairs or not all(name and number.isdigit() for name, _, number in pairs):
        raise BadFederation(f"{setting} is '{text}', expected \"name=number ...\", one for each hospital.")
    return {name: int(number) for name, _, number in pairs}


def image_site(prepared: Prepared, name: str, data: str, folder: Path) -> Site:
    """A hospital with its folder of images; every image is read once and checked.  Raises MedvfmError."""
    settings = prepared.settings
    local_paths.check(data, "The folder of the data")
    local_paths.check(folder, "The folder of this site's state")
    source = open_split(data, seed=settings.seed, val=0.0, test=settings.test_fraction)
    _check_names(settings, source.dataset)
    seen = prepared.assembled.base.model.spec.input_shape[-1]
    if unseen := settings.channel_names[seen:]:
        _LOG.warning("%s sees the first %d channels, nothing of %s", settings.model, seen, ", ".join(unseen))
    local = TrainingConfig(
        data,
        prompts_per_image=settings.prompts_per_image,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    found = training_data(source, prepared.assembled.base.model.spec, settings.prompt, local)
    return Site(prepared.agreement, name, partial(_shard, settings, found, name), folder)


def save_result(prepared: Prepared, progress: Progress, path: Path) -> None:
    """Write the server's delta as a file for ``medvfm evaluate --delta`` and ``medvfm segment --delta``."""
    settings, assembled = prepared.settings, prepared.assembled
    shared = prepared.agreement.algorithm.model(progress.server, None)
    metadata = {
        "base": settings.model,
        "fingerprint": assembled.base.fingerprint,
        "transform": assembled.transform,
        "adapter": assembled.adapter,
        "preset": settings.preset,
        "classes": len(settings.numbered_labels),
        "labels": settings.numbered_labels,
        "channel_names": list(settings.channel_names),
        "seed": settings.seed,
        "prompt": settings.prompt,
        "rounds": int(progress.server.round),
        **recorded_shape(assembled.shape),
    }
    artifacts.save_delta(path, join_personal(shared, assembled.delta), metadata)


def _check_names(settings: ImageFederation, dataset: Dataset) -> None:
    labels, channels = dict(dataset.labels), tuple(dataset.channel_names)
    if labels != settings.numbered_labels:
        raise BadFederation(
            f"The labels of {dataset.folder} are {labels}, the federation's are {settings.numbered_labels}."
        )
    if channels != settings.channel_names:
        raise BadFederation(
            f"The channels of {dataset.folder} are {channels}, the federation's are {settings.channel_names}."
        )


def _algorithm(settings: ImageFederation, loss: LossFn, base: Base) -> Algorithm:
    def batch_loss(delta: Delta, batch: Batch, key: Array) -> Array:
        return loss(base.params, delta, batch, key)[0]

    entry = algorithm_catalog.ALGORITHMS[settings.algorithm]
    if entry.on_base or entry.takes or entry.needs_clients:
        raise BadFederation(
            f"{settings.algorithm} changes the base weights or needs more than a loss, which a federation over a "
            "network does not offer; simulate it with medvfm federate."
        )
    optimizer = make_optimizer(settings.learning_rate)
    optimizer = kept(optimizer, settings.algorithm) if settings.keep_optimizer else optimizer
    trained_by = settings.learning_rate if entry.plain_sgd else optimizer
    return entry.make(gradient_of(batch_loss), trained_by, **entry.options)


def _prompts(settings: ImageFederation) -> PromptConfig | None:
    return None if settings.prompt == "none" else PromptConfig(settings.prompt, settings.prompts_per_image)


def _example(settings: ImageFederation, spec: ModelSpec) -> Shard:
    """Shapes of the data of one site and round."""
    lead, prompts = (settings.local_steps, settings.batch_size), _prompts(settings)

    def shape(*axes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *axes), dtype)

    image, size = shape(*spec.input_shape), spec.logits_shape
    if prompts is None:
        outputs = len(settings.numbered_labels) + spec.distance_map
        batches = Batch(image, None, shape(outputs, *size), shape())
    else:
        q, p = prompts.count, prompts.slots
        asked = Prompts(shape(q, p, spec.rank), shape(q, p, dtype=jnp.int32))
        batches = Batch(image, asked, shape(q, *size), shape(q))
    return Shard(batches, jax.ShapeDtypeStruct((), jnp.float32))


def _shard(settings: ImageFederation, found: TrainingData, name: str, round_: int) -> tuple[Shard, int]:
    """The images of one round: they follow from the seed, the site's name and the round."""
    loader = make_loader(
        found.source.dataset,
        found.train,
        found.spec,
        found.task,
        batch_size=settings.batch_size,
        seed=zlib.crc32(f"{settings.seed} {name} {round_}".encode()),
        prompts=found.prompts,
        augment=settings.augment,
        threads=0,
    )
    batches = [next(loader) for _ in range(settings.local_steps)]
    stacked: Tree = jax.tree.map(lambda *x: np.stack(x), *batches)
    return Shard(stacked, np.float32(len(found.train))), settings.local_steps
