"""Objects without prompts, as ``instances``, with an image encoder that learns too."""

from medvfm_jax.systems import instances
from medvfm_jax.systems.places import lora_on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {**tuned_decoder(spec), "lora": lora_on_qv(spec)}


SYSTEM = instances.SYSTEM._replace(
    description="objects without prompts as instances, with LoRA, rank 4, unscaled, on q and v of the image encoder "
    "beside the decoder (after Archit et al. 2025, who tune all of the encoder)",
    adapter=_parts,
    differences=f"LoRA in place of a tuned encoder. {instances.SYSTEM.differences}",
)
