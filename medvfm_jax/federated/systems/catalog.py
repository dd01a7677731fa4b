"""Published federated systems by name: which arrays are trained and which algorithm combines them.

>>> system = systems.get("flap_sam")
>>> adapter = adapters.from_config(system.adapter(model.spec))
>>> federation = make_round(system.algorithm(loss, optax.adamw(1e-4)))

Every system runs in the same rounds as any other algorithm, so codecs, backends and checkpoints apply to it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medvfm_jax.adapters import presets
from medvfm_jax.adapters.serialise import did_you_mean
from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.records import Algorithm
from medvfm_jax.federated.systems.f3ocus import f3ocus
from medvfm_jax.federated.systems.feddpa import feddpa_adapter, feddpa_f, feddpa_t
from medvfm_jax.federated.systems.fedms import fedms, fedms_adapter
from medvfm_jax.federated.systems.fedpft_rounds import fedpft, fedpft_adapter
from medvfm_jax.federated.systems.fedpia import fedpia
from medvfm_jax.federated.systems.fesvibs import fesvibs, fesvibs_adapter
from medvfm_jax.federated.systems.flap_sam import flap_sam_adapter
from medvfm_jax.federated.systems.pfedpg import pfedpg
from medvfm_jax.federated.systems.prompt_federation import prompts_adapter, prompts_and_head_adapter
from medvfm_jax.types import ModelSpec


class System(NamedTuple):
    """A published system as parts of this library.

    description: one line, with its source.
    adapter(spec) -> JSON-able configuration from which ``adapters.from_config`` builds the adapter.
    algorithm(loss, optimizer, **options) -> Algorithm for ``make_round``; every option has a default.  One that is
        called ``params`` takes the frozen weights, one called ``split`` the model in three parts.
    interpretation: what is a reading of ours where the paper, or what we know of it, does not say; "" if nothing.
    """

    description: str
    adapter: Callable[[ModelSpec], dict[str, Any]]
    algorithm: Callable[..., Algorithm]
    interpretation: str
    instance_mixing: bool = False
    """Whether every image is predicted with a mixture of its own of the global and the local model (``feddpa``)."""


def _preset(name: str) -> Callable[[ModelSpec], dict[str, Any]]:
    return lambda spec: presets.config(name, spec)


_FEDDPA = (
    "Published on text models; the local adapter is the global one plus a second low-rank adapter; rank 8 on queries "
    "and values of the image encoder; an image is compared with five training images by the mean of its embedding, "
    "and cosine similarities are cut off at 0; rounds are validated under the half-half mix of training."
)

SYSTEMS: Mapping[str, System] = {
    "fedsam": System(
        "every parameter of SAM tuned and averaged (FedFMS, Liu et al. 2024, FedSAM)",
        _preset("full"),
        fedavg,
        "Prompts stay in use, where the release takes them out; optimizers restart every round, where it keeps Adam's "
        "moments at the client; samples are weighed exactly, where it rounds their shares to two decimals.",
    ),
    "fedmsa": System(
        "bottleneck adapters in a frozen image encoder and the mask decoder, averaged "
        "(FedFMS, Liu et al. 2024, FedMSA)",
        _preset("med_sa"),
        fedavg,
        "As fedsam; the prompt encoder stays frozen, which the release sends along.",
    ),
    "flap_sam": System(
        "LoRA in the attention of encoder and decoder; of the rest only the decoder's upscaling, hypernetworks and "
        "mask tokens are tuned; all averaged (FLAP-SAM, Asokan et al. 2024)",
        flap_sam_adapter,
        fedavg,
        "One LoRA of rank 32 on queries and values, unscaled, the release's default rank; the published traffic is "
        "66.1 times (LoRA alone) and 48.9 times (all) less than full tuning: here 68.5 and 46.8 on SAM ViT-B.",
    ),
    "feddpa_f": System(
        "a global LoRA, averaged for global_rounds rounds, then a local one per client, mixed for every instance "
        "(FedDPA-F, Yang et al. 2024)",
        feddpa_adapter,
        feddpa_f,
        _FEDDPA,
        instance_mixing=True,
    ),
    "feddpa_t": System(
        "a global LoRA, averaged, and a local one per client trained in every round, mixed for every instance "
        "(FedDPA-T, Yang et al. 2024)",
        feddpa_adapter,
        feddpa_t,
        _FEDDPA,
        instance_mixing=True,
    ),
    "promptfl": System(
        "only prompt tokens trained and averaged (after PromptFL, Guo et al. 2023)",
        prompts_adapter,
        fedavg,
        "PromptFL learns CLIP's text context; here the tokens are visual: deep prompts of a plain ViT, or the token "
        "embeddings of SAM's prompt encoder and mask decoder.",
    ),
    "pfedpg": System(
        "prompts that a generator at the server makes for every client, heads at the client "
        "(pFedPG, Yang et al. 2023)",
        prompts_and_head_adapter,
        pfedpg,
        "One cross-attention with one head, zero values at the start; SAM's token embeddings stand for prompts and its "
        "last linear layers for the head.",
    ),
    "fedpft": System(
        "clients tune a proxy with the strongest half of the encoder's feed-forward neurons, which are chosen anew "
        "between rounds (FedPFT, Peng et al. 2024)",
        fedpft_adapter,
        fedpft,
        "All parameters of the proxy are tuned; of the two alignments there is the choice of neurons between rounds, "
        "no distillation of layers on public images: the proxy starts with the full model's neurons as they are.",
    ),
    "fesvibs": System(
        "the encoder's blocks at the server, left after one drawn anew for every client and round; patch embedding and "
        "mask decoder at the client (FeSViBS, Almalik et al. 2023)",
        fesvibs_adapter,
        fesvibs,
        "Published for classification: here the projection keeps the map of tokens and the tail is the mask decoder; "
        "clients train in parallel on copies of the server's part; SAM's ViT encoders only.",
    ),
    "fedpia": System(
        "bottleneck adapters, permuted by optimal transport before they are averaged and before a client blends them "
        "with its own (FedPIA, Saha et al. 2024)",
        _preset("med_sa"),
        fedpia,
        "Transport between single neurons, barycentre from the last global adapter, integration by blending weights; "
        "the mask decoder is averaged.",
    ),
    "fedms": System(
        "a global low-rank expert first, then a local one and an averaged gate, layers activated one by one "
        "(FedMS, Wu et al. 2023)",
        fedms_adapter,
        fedms,
        "Experts are mixed at every site and token instead of whole models; layers wake from the last to the first "
        "over a fixed number of rounds.",
    ),
    "f3ocus": System(
        "every client trains a few layers, chosen by their tangent kernels and spread by the server "
        "(F3OCUS, Saha et al. 2024)",
        _preset("med_sa"),
        f3ocus,
        "The two objectives are one weighted sum, ascended by exchanges instead of meta-heuristics; the kernel is of "
        "single images' losses; the choice of a round uses the importance of the one before.",
    ),
}


def get(name: str) -> System:
    """Return a system by name; raises BadFederation with the nearest name."""
    if name not in SYSTEMS:
        raise BadFederation(f"There is no federated system '{name}'{did_you_mean(name, SYSTEMS)}.")
    return SYSTEMS[name]


def names() -> tuple[str, ...]:
    """Return the names of all systems."""
    return tuple(SYSTEMS)


def describe() -> dict[str, str]:
    """Return {name: one line on what the system does and where it comes from}."""
    return {name: system.description for name, system in SYSTEMS.items()}
