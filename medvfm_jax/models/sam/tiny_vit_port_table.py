"""SAM with a TinyViT encoder: MobileSAM, TinySAM, LiteMedSAM.

MobileSAM and TinySAM carry an unused classification head; BatchNorm's step counter is not a parameter.
"""

from medvfm_jax.models.sam.port_table import MASK_DECODER, NECK, PROMPT_ENCODER
from medvfm_jax.port_tables.rows import array, batch_norm, conv, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

CONVOLUTIONS = (
    "image_encoder.patch_embed.seq.{m:0|2}",
    "image_encoder.layers.{i}.blocks.{j}.{m:conv1|conv2|conv3|local_conv}",
    "image_encoder.layers.{i}.downsample.{m:conv1|conv2|conv3}",
)


def _conv_bn(source: str) -> tuple[Row, ...]:
    return *conv(f"{source}.c", bias=False), *batch_norm(f"{source}.bn")


TINY_VIT_ENCODER: tuple[Row, ...] = (
    *(row for source in CONVOLUTIONS for row in _conv_bn(source)),
    *array("image_encoder.layers.{i}.blocks.{j}.attn.attention_biases"),
    *norm("image_encoder.layers.{i}.blocks.{j}.{m:attn|mlp}.norm"),
    *dense("image_encoder.layers.{i}.blocks.{j}.attn.{m:qkv|proj}"),
    *dense("image_encoder.layers.{i}.blocks.{j}.mlp.{m:fc1|fc2}"),
)

TINY_VIT_SAM = PortTable(
    "tiny_vit_sam",
    TINY_VIT_ENCODER + NECK + PROMPT_ENCODER + MASK_DECODER,
    ignored=(
        *(f"{source}.bn.num_batches_tracked" for source in CONVOLUTIONS),
        "image_encoder.{m:head|norm_head}.{n:weight|bias}",
    ),
)
