"""Every federated system by name; a new one is a file with a ``SYSTEM`` and a line here.

Examples:
    >>> chosen = systems.SYSTEMS["flap_sam"]
    >>> adapter = adapters.from_config(configure("flap_sam", chosen.system, model.spec))
    >>> federation = make_round(chosen.algorithm(gradient_of(loss), optax.adamw(1e-4)))

Every system runs in the same rounds as any other algorithm, so codecs, backends and checkpoints apply to it.
"""

from medvfm_jax.catalog import Catalog
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.systems import (
    f3ocus,
    feddpa,
    fedfms,
    fedms,
    fedpft_rounds,
    fedpia,
    fesvibs,
    flap_sam,
    pfedpg,
    promptfl,
)
from medvfm_jax.federated.systems.record import FederatedSystem

SYSTEMS: Catalog[FederatedSystem] = Catalog(
    "federated system",
    {
        "fedsam": fedfms.FEDSAM,
        "fedmsa": fedfms.FEDMSA,
        "flap_sam": flap_sam.SYSTEM,
        "feddpa_f": feddpa.FEDDPA_F,
        "feddpa_t": feddpa.FEDDPA_T,
        "promptfl": promptfl.SYSTEM,
        "pfedpg": pfedpg.SYSTEM,
        "fedpft": fedpft_rounds.SYSTEM,
        "fesvibs": fesvibs.SYSTEM,
        "fedpia": fedpia.SYSTEM,
        "fedms": fedms.SYSTEM,
        "f3ocus": f3ocus.SYSTEM,
    },
    BadFederation,
)
