"""Parts of a round that do not fit together, refused before anything is traced."""

from typing import Any

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import (
    Algorithm,
    Codec,
    Privacy,
)
from medvfm_jax.federated.privacy.client_level import (
    refuse_models,
    update_multiplier,
)
from medvfm_jax.federated.secure.secure_sum import (
    SecureSum,
)


def check_privacy_and_downlink(algorithm: Algorithm, privacy: Privacy | None, down: Codec | None) -> None:
    """Refuse a compressed download of something else than the delta, and noise that would protect nobody."""
    if down is not None and algorithm.download is not None:
        raise BadFederation(
            "Clients of this algorithm receive other things than the delta, so the server's step cannot be "
            "compressed: leave its codec out or choose an algorithm that broadcasts the delta."
        )
    if privacy is None:
        return
    update_multiplier(privacy)
    if algorithm.reduction == "stack":
        raise BadFederation(
            "This algorithm looks at every upload (a robust rule, stacked factors or distillation), so noise on their "
            "sum would give no privacy: leave privacy out or choose an algorithm that averages."
        )
    refuse_models(algorithm)
    if algorithm.exact:
        raise BadFederation(
            f"What this algorithm's server makes of a round depends on {algorithm.exact}, which noise on the mean does "
            "not cover: with client-level privacy choose an algorithm whose server needs the mean alone, such as "
            "fedavg, fedprox, fedadam or scaffold, or protect patients (--dp-unit patient) with fedavg or fedprox."
        )


def check_split(algorithm: Algorithm, *parts: Any) -> None:
    """Refuse what changes or protects uploads that a split algorithm never sends."""
    if algorithm.traffic is not None and any(part is not None for part in parts):
        raise BadFederation(
            "The server computes a part of every step of this algorithm from the patches of the clients' images, which "
            "are sent unprotected: leave codecs, privacy and secure aggregation out, or choose an algorithm whose "
            "clients send updates."
        )


def check_secure(secure: SecureSum | None, privacy: Privacy | None) -> None:
    """A sum that is opened above a threshold and is nothing below it changes by many clips with one client more."""
    if secure is not None and privacy is not None:
        raise BadFederation(
            "Noise of the server does not protect what secure aggregation opens, because one client more may decide "
            "whether there is a sum at all: let each client add its share of the noise (--dp-noise discrete_gaussian "
            "or skellam; secure_sum.distributed_noise and no privacy), or leave secure aggregation out."
        )
