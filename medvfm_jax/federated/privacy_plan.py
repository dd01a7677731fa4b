"""From the epsilon somebody asks for to the noise of a whole run, and back to what was spent after each round."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.federated.privacy import Guarantee, account, with_epsilon
from medvfm_jax.federated.records import Privacy


class PrivacyPlan(NamedTuple):
    """Noise of a run.

    privacy: for ``make_round`` (unit client) or for the gradient of each client (unit patient).
    rates: client -> share of its patients expected in a step; with unit client one rate for all, under "".
    steps: noisy sums per round and unit: 1 with unit client, the local steps with unit patient.
    """

    privacy: Privacy
    rates: Mapping[str, float]
    steps: int
    delta: float

    @property
    def worst(self) -> str:
        """The client whose patients are protected least: those of the smallest hospital are drawn most often."""
        return max(self.rates, key=self.rates.get)

    def guarantee(self, rounds: int, client: str | None = None) -> Guarantee:
        """What holds after so many rounds, for the patients of one client or of the worst."""
        rate = self.rates[self.worst if client is None else client]
        return _account(self.privacy, rounds * self.steps, self.delta, rate)

    def statement(self, rounds: int) -> str:
        """One sentence on unit, neighbouring relation, sampling, and what it does not cover."""
        found = self.guarantee(rounds)
        text = str(found)
        if self.privacy.unit == "patient":
            text = text.replace(f"{found.rounds} rounds", f"{found.rounds} steps").replace(
                "every round", "every step"
            )
            text += f"; of those trained on, at '{self.worst}', the client where it is weakest"
            text += "; the numbers of images, which weigh the hospitals, count as public"
        return f"{text}; losses and validation scores shown during the run are exact and not covered"


def plan(config: FederateConfig, patients: Mapping[str, int]) -> PrivacyPlan | None:
    """The least noise with which all rounds stay within ``dp_epsilon``; None if no privacy was asked for.

    patients: client -> number of its training patients.  Unit patient: a hospital draws each patient independently
    with rate batch_size / patients in every step (all of them where it has fewer), so the expected batch is a public
    constant; all hospitals use the noise that the one with the largest rate needs.  Unit client: each client is drawn
    with rate ``participation``.  Raises BadPrivacy, MissingPrivacyExtra.
    """
    if config.dp_epsilon is None:
        return None
    if config.dp_unit == "patient":
        expected, steps = float(config.batch_size), config.local_steps
        rates = {client: min(1.0, config.batch_size / n) for client, n in patients.items()}
    else:
        expected, steps = config.participation * len(patients), 1
        rates = {"": config.participation}
    rate = max(rates.values())
    privacy = with_epsilon(
        Privacy(config.dp_clip, 1.0, expected, unit=config.dp_unit),
        config.dp_epsilon,
        rounds=config.rounds * steps,
        delta=config.dp_delta,
        rate=rate,
        accountant=_accountant(rate),
    )
    return PrivacyPlan(privacy, rates, steps, config.dp_delta)


@lru_cache(maxsize=4096)
def _account(privacy: Privacy, sums: int, delta: float, rate: float) -> Guarantee:
    return account(privacy, rounds=sums, delta=delta, rate=rate, accountant=_accountant(rate))


def _accountant(rate: float) -> str:
    return "exact" if rate == 1 else "pld"
