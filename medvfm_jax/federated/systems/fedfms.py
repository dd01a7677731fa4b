"""FedFMS: SAM tuned whole, or with Medical SAM Adapters, by federated averaging."""

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import SYSTEMS, System

_SOURCE = "https://arxiv.org/abs/2403.05408"

FEDSAM = FederatedSystem(
    System(
        description="every parameter of SAM tuned and averaged (FedFMS, Liu et al. 2024, FedSAM)",
        source=_SOURCE,
        adapter=SYSTEMS["full"].adapter,
        differences="Prompts stay in use, where the release takes them out; optimizers restart every round, where it "
        "keeps Adam's moments at the client; samples are weighed exactly, where it rounds their shares to two "
        "decimals.",
    ),
    fedavg,
)
FEDMSA = FederatedSystem(
    System(
        description="bottleneck adapters in a frozen image encoder and the mask decoder, averaged "
        "(FedFMS, Liu et al. 2024, FedMSA)",
        source=_SOURCE,
        adapter=SYSTEMS["med_sa"].adapter,
        differences="As fedsam; the prompt encoder stays frozen, which the release sends along.",
    ),
    fedavg,
)
