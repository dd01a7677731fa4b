"""Every system by name; a new one is a file with a ``SYSTEM`` and a line here."""

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.catalog import Catalog
from medvfm_jax.systems import (
    adalora,
    adaptformer,
    bitfit,
    compacter,
    context,
    conv_lora,
    decoder,
    dora,
    fact_tk,
    fact_tt,
    full,
    layernorm,
    linear,
    lora,
    lora_ga,
    lora_mixture,
    med_sa,
    pissa,
    samed,
    sd_trans,
    ssf,
    vpt,
)
from medvfm_jax.systems.record import System

SYSTEMS: Catalog[System] = Catalog(
    "system",
    {
        "samed": samed.SYSTEM,
        "med_sa": med_sa.SYSTEM,
        "sd_trans": sd_trans.SYSTEM,
        "lora": lora.SYSTEM,
        "dora": dora.SYSTEM,
        "pissa": pissa.SYSTEM,
        "lora_ga": lora_ga.SYSTEM,
        "adalora": adalora.SYSTEM,
        "lora_mixture": lora_mixture.SYSTEM,
        "conv_lora": conv_lora.SYSTEM,
        "fact_tt": fact_tt.SYSTEM,
        "fact_tk": fact_tk.SYSTEM,
        "adaptformer": adaptformer.SYSTEM,
        "compacter": compacter.SYSTEM,
        "decoder": decoder.SYSTEM,
        "linear": linear.SYSTEM,
        "full": full.SYSTEM,
        "ssf": ssf.SYSTEM,
        "bitfit": bitfit.SYSTEM,
        "layernorm": layernorm.SYSTEM,
        "vpt": vpt.SYSTEM,
        "context": context.SYSTEM,
    },
    BadAdapterConfig,
)
