"""Every system by name; a new one is a file with a ``SYSTEM`` and a line here."""

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.catalog import Catalog
from medvfm_jax.systems import bitfit, context, decoder, full, linear, lora, med_sa, samed, sd_trans, ssf, vpt
from medvfm_jax.systems.record import System

SYSTEMS: Catalog[System] = Catalog(
    "system",
    {
        "samed": samed.SYSTEM,
        "med_sa": med_sa.SYSTEM,
        "sd_trans": sd_trans.SYSTEM,
        "lora": lora.SYSTEM,
        "decoder": decoder.SYSTEM,
        "linear": linear.SYSTEM,
        "full": full.SYSTEM,
        "ssf": ssf.SYSTEM,
        "bitfit": bitfit.SYSTEM,
        "vpt": vpt.SYSTEM,
        "context": context.SYSTEM,
    },
    BadAdapterConfig,
)
