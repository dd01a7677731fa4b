"""Merlin's encoder as its checkpoints store it; the prefixes are those of Merlin's and of Astra's whole models.

Its kernels have depth, then the axis to the right, then that to the front; ours have the last two in the other order.
"""

from medvfm_jax.port_tables.rows import batch_norm
from medvfm_jax.port_tables.table import PortTable, Row

_BODY, _BLOCK, _LAYOUT = "image_encoder", "image_encoder/layer{s}_{i}", "oidwh_to_dhwio"


def _kernel(source: str, target: str, layout: str) -> Row:
    return Row((f"{source}.weight",), f"{target}/kernel", layout)


I3RESNET = PortTable(
    "merlin",
    (
        _kernel("conv1", f"{_BODY}/conv1", _LAYOUT),
        *batch_norm("bn1", f"{_BODY}/bn1"),
        _kernel("layer{s}.{i}.{n:conv1|conv3}", f"{_BLOCK}/{{n}}", "pointwise"),
        _kernel("layer{s}.{i}.conv2", f"{_BLOCK}/conv2", _LAYOUT),
        *batch_norm("layer{s}.{i}.{n:bn1|bn2|bn3}", f"{_BLOCK}/{{n}}"),
        _kernel("layer{s}.{i}.downsample.0", f"{_BLOCK}/downsample_conv", "pointwise"),
        *batch_norm("layer{s}.{i}.downsample.1", f"{_BLOCK}/downsample_bn"),
    ),
    ignored=(
        "bn1.num_batches_tracked",
        "layer{s}.{i}.{n:bn1|bn2|bn3}.num_batches_tracked",
        "layer{s}.{i}.downsample.1.num_batches_tracked",
    ),
    prefixes=("visual_encoder.model.", "encode_image.i3_resnet."),
)
