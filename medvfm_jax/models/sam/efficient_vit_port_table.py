"""SAM with an EfficientViT encoder as released (mit-han-lab/efficientvit): EfficientViT-SAM L0 to XL1.

BatchNorm's step counter is not a parameter.
"""

from medvfm_jax.models.sam.port_table import MASK_DECODER, PROMPT_ENCODER
from medvfm_jax.port_tables.rows import batch_norm, conv, norm
from medvfm_jax.port_tables.table import PortTable, Row

_STAGE, _BLOCK = "image_encoder.backbone.stages.{i}.op_list.{j}", "image_encoder/stages_{i}_{j}"
_NECK = "image_encoder.neck"
_LOCAL = "conv1|conv2|spatial_conv|inverted_conv|depth_conv|point_conv"

# With a batch norm, or with a bias: which of the two, the checkpoint says.
LAYERS = {
    _STAGE: _BLOCK,
    f"{_STAGE}.main.{{m:{_LOCAL}}}": f"{_BLOCK}/{{m}}",
    f"{_STAGE}.context_module.main.proj": f"{_BLOCK}/context/proj",
    f"{_STAGE}.local_module.main.{{m:{_LOCAL}}}": f"{_BLOCK}/local/{{m}}",
    f"{_NECK}.input_ops.{{i}}.op_list.0": "image_encoder/neck_input_{i}",
    f"{_NECK}.middle.op_list.{{i}}.main.{{m:{_LOCAL}}}": "image_encoder/neck_middle_{i}/{m}",
}


def _layer(source: str, target: str) -> tuple[Row, ...]:
    return *conv(f"{source}.conv", f"{target}/conv"), *batch_norm(f"{source}.norm", f"{target}/norm")


EFFICIENT_VIT_ENCODER: tuple[Row, ...] = (
    *(row for source, target in LAYERS.items() for row in _layer(source, target)),
    *conv(f"{_STAGE}.context_module.main.qkv.conv", f"{_BLOCK}/context/qkv", bias=False),
    *conv(f"{_STAGE}.context_module.main.aggreg.0.{{k:0|1}}", f"{_BLOCK}/context/aggreg_{{k}}", bias=False),
    *conv(f"{_NECK}.output_ops.0.op_list.0.conv", "image_encoder/neck_output"),
    *norm("image_encoder.norm"),
)

EFFICIENT_VIT_SAM = PortTable(
    "efficient_vit_sam",
    EFFICIENT_VIT_ENCODER + PROMPT_ENCODER + MASK_DECODER,
    ignored=tuple(f"{source}.norm.num_batches_tracked" for source in LAYERS),
)
