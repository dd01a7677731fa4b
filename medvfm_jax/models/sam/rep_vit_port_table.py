"""SAM with a RepViT encoder: EdgeSAM, and RepViT-SAM, which has other norms in depthwise blocks and sums no stages.

BatchNorm's step counter is not a parameter.
"""

from medvfm_jax.models.sam.port_table import MASK_DECODER, NECK, PROMPT_ENCODER
from medvfm_jax.port_tables.rows import batch_norm, conv
from medvfm_jax.port_tables.table import PortTable, Row

_FEATURES, _BLOCK = "image_encoder.features.{i}", "image_encoder/features_{i}"

_JOINT = f"{_FEATURES}.token_mixer.0.conv1"
CONVOLUTIONS = {
    "image_encoder.features.0.{m:0|2}": "image_encoder/stem_{m}",
    f"{_FEATURES}.token_mixer.0.{{m:conv|conv1}}": f"{_BLOCK}/token_mixer_0/{{m}}",
    f"{_FEATURES}.token_mixer.{{m:0|2}}": f"{_BLOCK}/token_mixer_{{m}}",
    f"{_FEATURES}.channel_mixer.m.{{m:0|2}}": f"{_BLOCK}/channel_mixer_{{m}}",
}


def _conv_bn(source: str, target: str) -> tuple[Row, ...]:
    return *conv(f"{source}.c", f"{target}/c", bias=False), *batch_norm(f"{source}.bn", f"{target}/bn")


REP_VIT_ENCODER: tuple[Row, ...] = (
    *(row for source, target in CONVOLUTIONS.items() for row in _conv_bn(source, target)),
    *conv(f"{_FEATURES}.token_mixer.1.{{m:fc1|fc2}}", f"{_BLOCK}/token_mixer_1/{{m}}"),
    *conv("image_encoder.fuse_stage2", bias=False),
    *conv("image_encoder.fuse_stage3.op_list.0", "image_encoder/fuse_stage3", bias=False),
    *conv(_JOINT, f"{_BLOCK}/token_mixer_0/conv1"),
)

REP_VIT_SAM = PortTable(
    "rep_vit_sam",
    REP_VIT_ENCODER + NECK + PROMPT_ENCODER + MASK_DECODER,
    ignored=tuple(f"{source}.bn.num_batches_tracked" for source in CONVOLUTIONS),
)
