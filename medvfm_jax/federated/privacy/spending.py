"""From the requested epsilon to the noise of a whole run, and back to what was spent after each round."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy import Guarantee, account, with_epsilon
from medvfm_jax.federated.privacy.client_level import update_multiplier
from medvfm_jax.federated.privacy.discrete import Discrete
from medvfm_jax.federated.privacy.discrete_accounting import account_discrete, discrete_with_epsilon
from medvfm_jax.settings.federate import FederateConfig


class PrivacyPlan(NamedTuple):
    """Noise of a run.

    privacy: for ``make_round`` (unit client) or for the gradient of each client (unit patient).
    rates: client -> share of its patients expected in a step; with unit client one rate for all, under "".
    steps: noisy sums per round and unit: 1 with unit client, the local steps with unit patient.
    seed: the number that noise and samples are made from, None for the operating system's randomness.
    exposed: what the run leaves behind that the noise does not cover.
    mechanism: of noise that the clients add, None for central noise; ``answered``: the fewest of a round whose shares
        of it are in a sum, which is what the accounting assumes of every round.
    """

    privacy: Privacy
    rates: Mapping[str, float]
    steps: int
    delta: float
    seed: int | None = None
    exposed: tuple[str, ...] = ()
    mechanism: Discrete | None = None
    answered: int = 0

    @property
    def multiplier(self) -> float:
        """Noise multiplier of what is released."""
        return update_multiplier(self.privacy)

    @property
    def worst(self) -> str:
        """The client whose patients are protected least: those of the smallest hospital are drawn most often."""
        return max(self.rates, key=self.rates.get)

    def guarantee(self, rounds: int, client: str | None = None) -> Guarantee:
        """What holds after so many rounds, for the patients of one client or of the worst."""
        if self.mechanism is not None:
            return account_discrete(self.mechanism, rounds=rounds, delta=self.delta, answered=self.answered)
        rate = self.rates[self.worst if client is None else client]
        return _account(self.privacy, rounds * self.steps, self.delta, rate)

    @property
    def no_secret(self) -> str | None:
        """Why nothing is private about this run, whatever its noise: None unless that came from a known number."""
        if self.seed is None:
            return None
        return (
            f"NOT PRIVATE: noise and samples were made from --dp-seed {self.seed}, so whoever knows this number can "
            "take the noise off."
        )

    def statement(self, rounds: int) -> str:
        """Unit, neighbouring relation, sampling, and everything recorded that the guarantee does not cover."""
        found = self.guarantee(rounds)
        text = str(found)
        if self.privacy.unit == "patient":
            text = text.replace(f"{found.rounds} rounds", f"{found.rounds} steps").replace(
                "every round", "every step"
            )
            text += f"; of those trained on, at '{self.worst}', the client where it is weakest"
            text += (
                "; numbers of patients and images of a hospital, which set rates and weights, count as public"
            )
        if self.mechanism is not None:
            n = int(self.privacy.expected_clients)
            text += (
                f"; noise added by the clients ({self.mechanism.noise}, {self.mechanism.bits} bits), with the shares "
                f"of {self.answered} of {n} clients of a round, below which secure aggregation opens no sum"
            )
        text += f"; recorded and not covered: {'; '.join(self.exposed)}"
        if self.no_secret is None:
            return text
        return f"{self.no_secret} With secret randomness it would be: {text}"


def plan(
    config: FederateConfig,
    patients: Mapping[str, int],
    keeps: bool = False,
    numbers: int = 0,
    steps: int | None = None,
) -> PrivacyPlan | None:
    """The least noise with which all rounds stay within ``dp_epsilon``; None if no privacy was asked for.

    patients: client -> number of its training patients.  Unit patient: a hospital draws each patient independently
    with rate batch_size / patients in every step (all of them where it has fewer), so the expected batch is a public
    constant; all hospitals use the noise that the one with the largest rate needs.  Unit client: each client is drawn
    with rate ``participation``; where the clients add the noise, a fixed number of them, with no amplification claimed.
    keeps: whether a part of the model stays at the client.  numbers: of an upload, for noise of the clients.  steps:
    local steps of a round, those of the settings unless given.
    Raises BadPrivacy, MissingPrivacyExtra.
    """
    if config.dp_epsilon is None:
        return None
    if config.dp_unit == "patient":
        expected, steps = float(config.batch_size), steps or config.local_steps
        rates = {client: min(1.0, config.batch_size / n) for client, n in patients.items()}
    else:
        expected, steps = config.participation * len(patients), 1
        rates = {"": config.participation}
    if config.distributed_noise:
        return _distributed(config, len(patients), keeps, numbers)
    rate = max(rates.values())
    privacy = with_epsilon(
        Privacy(config.dp_clip, 1.0, expected, unit=config.dp_unit),
        config.dp_epsilon,
        rounds=config.rounds * steps,
        delta=config.dp_delta,
        rate=rate,
        accountant=_accountant(rate),
    )
    return PrivacyPlan(privacy, rates, steps, config.dp_delta, config.dp_seed, exposed(config, keeps))


def _distributed(config: FederateConfig, clients: int, keeps: bool, numbers: int) -> PrivacyPlan:
    chosen, answered = config.in_round(clients), config.least_answers(clients)
    mechanism = discrete_with_epsilon(
        Privacy(config.dp_clip, 1.0, chosen, neighbours="zero out one"),
        config.dp_epsilon,
        size=numbers,
        rounds=config.rounds,
        delta=config.dp_delta,
        answered=answered,
        bits=config.dp_bits,
        noise="gaussian" if config.dp_noise == "discrete_gaussian" else "skellam",
    )
    exposes = exposed(config, keeps)
    return PrivacyPlan(
        mechanism.privacy, {"": 1.0}, 1, config.dp_delta, config.dp_seed, exposes, mechanism, answered
    )


def validates(config: FederateConfig, keeps: bool) -> bool:
    """Whether scores of validation may be recorded.

    With unit client not those of models that keep a part without noise: a client's score would change exactly in the
    rounds it took part in, which amplification assumes hidden.
    """
    unnoised = config.client_privacy and keeps
    return bool(config.validate_every) and (config.dp_log_unprotected or not unnoised)


def exposed(config: FederateConfig, keeps: bool) -> tuple[str, ...]:
    """What a private run leaves behind that its noise does not cover, in words."""
    found = ["config.json (cases held out for validation and test, digest of all images)"]
    if validates(config, keeps) and config.val_fraction > 0:
        found.append("validation scores of each site in metrics.jsonl, exact and about its held-out patients")
    if config.score:
        found.append("scores and masks of the test patients")
    if config.client_privacy and keeps:
        found.append("what each client keeps (personal.safetensors) and all scores made with it")
    found.append(
        "checkpoints, which hold the clients' states and, until the run has ended, the secret of the noise"
    )
    if config.embeddings in ("auto", "disk") and (config.patient_privacy or config.participation < 1):
        found.append(
            "where the encoder is frozen, embeddings on disk (--embeddings disk, or more than fit in memory), whose "
            "times tell who was drawn first; --embeddings memory keeps none"
        )
    if config.dp_log_unprotected:
        found.append(
            "and, as asked for with --dp-log-unprotected, exact losses and norms, who took part and who was excluded "
            "in which round (which the sampling assumes hidden), the share that was clipped, what each client holds, "
            "and times of rounds"
        )
    return tuple(found)


@lru_cache(maxsize=4096)
def _account(privacy: Privacy, sums: int, delta: float, rate: float) -> Guarantee:
    return account(privacy, rounds=sums, delta=delta, rate=rate, accountant=_accountant(rate))


def _accountant(rate: float) -> str:
    return "exact" if rate == 1 else "pld"
