"""How large the noise of a private run will be, before it starts, beside the largest signal that it can hide."""

import math
from typing import Any, NamedTuple

from medvfm_jax.federated.privacy.spending import PrivacyPlan

DROWNED = 1.0  # noise as long as the longest signal: no round can show more than its noise


class NoisePrediction(NamedTuple):
    """Noise and signal of one release: a round's mean with unit client, one step's gradient with unit patient.

    norm: expected l2 norm of the noise, z C sqrt(d) / m.  signal: the largest norm without noise, the clipping bound C,
    which is reached only if all who come agree.  parameters: d.  averaged: releases in the mean of one round (local
    steps times hospitals with unit patient), which divide the noise by its root.
    """

    unit: str
    norm: float
    signal: float
    parameters: int
    averaged: int
    expected: float  # m: clients in a round, or patients in a step of one hospital
    share: float  # of the clients in a round
    applies: str = ""  # see ``Algorithm.applies``

    @property
    def ratio(self) -> float:
        """Noise over largest signal in the mean of one round."""
        return self.norm / (self.signal * math.sqrt(self.averaged))

    @property
    def drowned(self) -> bool:
        """Whether noise hides the signal: a ratio above ``DROWNED``."""
        return self.ratio > DROWNED

    @property
    def parameters_that_fit(self) -> int:
        """As many parameters as the same noise does not drown; 0 if it drowns one."""
        return (
            math.floor(self.parameters * (DROWNED / self.ratio) ** 2) if self.ratio > 0 else self.parameters
        )

    @property
    def clients_that_suffice(self) -> int:
        """Clients that would be enough at the same share of them, on which alone the noise multiplier depends."""
        return math.ceil(self.expected * self.ratio / DROWNED / self.share)

    def sentence(self) -> str:
        """Noise beside signal, and if it drowns it, what would help."""
        found = (
            f"the noise in the mean of a round will have a norm of {self.norm / math.sqrt(self.averaged):.3g} beside a "
            f"signal of at most {self.signal:.3g} (the clipping bound) over {self.parameters} parameters: "
            f"{self.ratio:.3g} times as much"
        )
        if self.applies:
            found = f"{found}; the server does not just add that mean: it {self.applies}"
        if not self.drowned:
            return found
        fewer = f"at most {self.parameters_that_fit} trained parameters (a smaller --preset)"
        if self.unit == "client":
            more = (
                f"at least {self.clients_that_suffice} clients, protecting patients instead (--dp-unit patient, whose "
                "noise is averaged over steps and hospitals)"
            )
        else:
            more = (
                f"more patients in a step (--batch-size, {self.expected:g} now) at hospitals that have more"
            )
        return (
            f"{found}. Noise drowns the signal, and this run will hardly learn. What would help: {fewer}, {more}, or a "
            "larger --dp-epsilon"
        )

    def record(self) -> dict[str, Any]:
        """As config.json has it."""
        return self._asdict() | {
            "ratio": self.ratio,
            "drowned": self.drowned,
            "parameters_that_fit": self.parameters_that_fit,
            "sentence": self.sentence(),
        }


def predict_noise(
    plan: PrivacyPlan, parameters: int, clients: int, participation: float, applies: str = ""
) -> NoisePrediction:
    """Noise of a planned run.

    parameters: numbers that are clipped and noised together, those of an upload or of a gradient.  participation: share
    of the clients in a round.  applies: of the algorithm.
    """
    privacy = plan.privacy
    norm = plan.multiplier * privacy.clip * math.sqrt(parameters) / privacy.expected_clients
    averaged = 1 if privacy.unit == "client" else plan.steps * max(1, round(participation * clients))
    return NoisePrediction(
        privacy.unit,
        norm,
        privacy.clip,
        parameters,
        averaged,
        privacy.expected_clients,
        participation,
        applies,
    )
