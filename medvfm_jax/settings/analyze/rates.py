"""Settings of `analyze rates`."""

import dataclasses
from typing import Literal

from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig, Settings, require


@dataclasses.dataclass(frozen=True)
class RatesConfig(Settings):
    """What a federated run will send, and how much its codec and its noise take from every round."""

    _: dataclasses.KW_ONLY
    model: str = "lite-medsam"
    """Model that clients adapt; no weights are needed."""
    presets: tuple[str, ...] = ("decoder", "lora")
    """Adapters to compare."""
    set: tuple[str, ...] = ()
    """Option of an adapter, like lora.rank=8; see `medvfm systems`."""
    classes: int = 2
    """Outputs of a prompt-free model, background included."""
    codecs: tuple[str, ...] = ("identity", "int8", "int4", "top_k", "drive")
    """Codecs of the updates to compare."""
    epsilons: tuple[float, ...] = (1.0, 3.0, 8.0)
    """Epsilons of differential privacy over all rounds to compare."""
    clients: int = 5
    """Number of clients."""
    patients: int = 50
    """Training patients of each client, for --dp-unit patient."""
    participation: float = 1.0
    """Share of the clients in a round."""
    rounds: int = 20
    """Rounds of exchange."""
    local_steps: int = 5
    """Optimiser steps of each client in a round."""
    batch_size: int = 2
    """With patient-level privacy the expected number of patients per step."""
    dp_unit: Literal["client", "patient"] = "client"
    """Whom the noise protects: a whole client (noise on the sum of updates) or each patient (noise in each step)."""
    dp_delta: float = 1e-5
    """delta of (epsilon, delta)-differential privacy."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        for name in ("presets", "codecs", "epsilons"):
            values = getattr(self, name)
            require(len(values) >= 1, name, values, "one or more")
            if repeated := [value for value in values if values.count(value) > 1]:
                raise BadConfig(f"{name} has {repeated[0]} twice; it would give the same row.")
        require(self.patients >= 1, "patients", self.patients, "at least 1")
        require(self.classes >= 2, "classes", self.classes, "at least 2")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(all(epsilon > 0 for epsilon in self.epsilons), "epsilons", self.epsilons, "all positive")
        self.federation(self.epsilons[0])

    def federation(self, epsilon: float) -> FederateConfig:
        """The run whose noise is asked for, as `federate` knows it; raises BadConfig."""
        return FederateConfig(
            data="data",
            clients=self.clients,
            participation=self.participation,
            rounds=self.rounds,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            dp_epsilon=epsilon,
            dp_unit=self.dp_unit,
            dp_delta=self.dp_delta,
        )
