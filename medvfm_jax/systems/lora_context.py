"""LoRA on queries and values, and a context block between image encoder and mask decoder."""

from medvfm_jax.systems.places import LEVELS, lora_on_qv
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    block = {"kind": "context", "block": "bifpn", "at": "image_encoder", "levels": LEVELS}
    return {"context": block, "lora": lora_on_qv(spec)}


SYSTEM = System(
    description="LoRA, and a context block after the image encoder that reads several of its layers "
    "(--set context.block=NAME)",
    source="https://arxiv.org/abs/1911.09070",
    adapter=_parts,
    learning_rate=1e-3,
    differences="Interpretation: no publication puts this block behind LoRA; EfficientDet's BiFPN is the block at "
    "first, others of the catalogue are published for networks of their own; zero at start.",
)
