"""What a federated run sends, and how much its codec and its noise take from every round, before it starts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax import Array

from medvfm_jax import systems
from medvfm_jax.federated.codecs.catalog import guarantee, make_codec
from medvfm_jax.federated.codecs.wire import bits
from medvfm_jax.federated.core.records import Codec
from medvfm_jax.federated.privacy.noise_prediction import NoisePrediction, predict_noise
from medvfm_jax.federated.privacy.spending import plan
from medvfm_jax.models import catalog
from medvfm_jax.settings.analyze.rates import RatesConfig
from medvfm_jax.settings.groups import ModelConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.assemble import adapt_base
from medvfm_jax.train.base_model import Base
from medvfm_jax.types import Delta
from medvfm_jax.weights.registry import model_of

_MEASURED = 2**18  # numbers, at most, of updates on which codecs are tried


class CodecRate(NamedTuple):
    """What one codec sends of one adapter, and what it loses.

    Attributes:
        preset: the adapter.
        codec: its name.
        numbers: of an update.
        upload: bytes of a client's update.
        total: bytes of all rounds, with float32 on the way to the clients.
        loss: squared error of the mean of a round at most, over the mean squared norm of its updates: omega / m of an
            unbiased codec and m clients, 1 - delta of a biased one; infinite where no bound is known.
        normal: the same, measured on updates of independent normal numbers; None of more than 2^18 of them.
        unbiased: whether errors of clients cancel; those of a biased codec need a memory (``--memory``).
    """

    preset: str
    codec: str
    numbers: int
    upload: int
    total: int
    loss: float
    normal: float | None
    unbiased: bool


class PrivacyRate(NamedTuple):
    """What one epsilon costs one adapter.

    Attributes:
        preset: the adapter.
        epsilon: of all rounds.
        multiplier: noise multiplier.
        noise: of a round, beside the largest signal.
        overall: its ratio over the root of the rounds: noise of their sum, where all have the same signal.
    """

    preset: str
    epsilon: float
    multiplier: float
    noise: NoisePrediction
    overall: float


class RatesResult(NamedTuple):
    """What was found.

    Attributes:
        model: its name.
        chosen: clients of a round.
        codecs: for each adapter and codec.
        privacy: for each adapter and epsilon.
    """

    model: str
    chosen: int
    codecs: tuple[CodecRate, ...]
    privacy: tuple[PrivacyRate, ...]


def analyze_rates(config: RatesConfig, say: Callable[[str], None] = lambda text: None) -> RatesResult:
    """Bytes, the codec's error and the noise of federated averaging, from shapes alone; no weights, no data.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        A row for each adapter and codec, and for each adapter and epsilon.

    Raises:
        BadConfig: a model of features that no adapter trains.
        MissingPrivacyExtra: dp-accounting is not installed, and not everyone takes part.
        MedvfmError: names and options that do not exist, or adapters that do not fit the model.
    """
    federation = config.federation(config.epsilons[0])
    chosen = federation.in_round(config.clients)
    patients = {f"client {number}": config.patients for number in range(config.clients)}
    codecs, private = [], []
    for preset in config.presets:
        delta = trained_shapes(config, preset)
        numbers = optax.tree.size(delta)
        codecs += [codec_rate(preset, name, delta, chosen, config.rounds) for name in config.codecs]
        say(f"{preset}: {numbers:,} numbers")
        for epsilon in config.epsilons:
            spending = plan(config.federation(epsilon), patients, numbers=numbers)
            noise = predict_noise(spending, numbers, config.clients, config.participation)
            overall = noise.ratio / config.rounds**0.5
            private.append(PrivacyRate(preset, epsilon, spending.multiplier, noise, overall))
    return RatesResult(config.model, chosen, tuple(codecs), tuple(private))


def codec_rate(preset: str, name: str, delta: Delta, chosen: int, rounds: int) -> CodecRate:
    """A row for a codec with its default options.

    delta: shapes of an update.  chosen: clients of a round.
    """
    upload = -(-bits(make_codec(name), delta) // 8)
    down = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(delta))
    known = guarantee(name, delta)
    unbiased = known.omega is not None
    loss = known.omega / chosen if unbiased else 1 - known.delta
    numbers = optax.tree.size(delta)
    normal = None
    if numbers <= _MEASURED:
        normal = _error_of_normal(make_codec(name), delta) / (chosen if unbiased else 1)
    total = rounds * chosen * (upload + down)
    return CodecRate(preset, name, numbers, upload, total, loss, normal, unbiased)


def _error_of_normal(codec: Codec, delta: Delta) -> float:
    """Squared error of a codec over the squared norm of an update of independent normal numbers."""

    @jax.jit
    def errors(key: Array) -> Array:
        update = optax.tree.random_like(jax.random.fold_in(key, 0), delta, jax.random.normal)
        message, _ = codec.encode(jax.random.fold_in(key, 1), codec.init(update), update)
        missed = optax.tree.sub(codec.decode(message, update), update)
        return optax.tree.norm(missed, squared=True) / optax.tree.norm(update, squared=True)

    return float(errors(jax.random.key(0)))


def trained_shapes(config: RatesConfig, preset: str) -> Delta:
    """Shapes of what an adapter trains of a model whose weights are not loaded."""
    model = catalog.build(model_of(config.model))
    if model.spec.task == "features" and preset not in ("linear", "full"):
        raise BadConfig(
            f"Model '{config.model}' gives features; take --presets linear, or a model that segments."
        )
    base = Base(model, jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0))), "")
    wanted = ModelConfig(model=config.model, set=config.set)
    system = systems.SYSTEMS[preset]
    return adapt_base(base, wanted, preset, system, classes=config.classes, seed=0).delta
