"""The networks of deepbet as its package stores them, TorchScript archives; instance norms have no parameters."""

from medvfm_jax.port_tables.rows import array
from medvfm_jax.port_tables.table import PortTable, Row

_ENCODER, _DECODER = "image_encoder", "mask_decoder"


def _row(source: str, target: str, layout: str) -> Row:
    return Row((f"{source}.weight",), f"{target}/kernel", layout)


LINKNET3D = PortTable(
    "deepbet",
    (
        _row("init.0", f"{_ENCODER}/init", "oidhw_to_dhwio"),
        _row("down{s}.block{b}.double_conv.0", f"{_ENCODER}/down{{s}}_block{{b}}/conv1", "oidhw_to_dhwio"),
        _row("down{s}.block{b}.double_conv.3", f"{_ENCODER}/down{{s}}_block{{b}}/conv2", "oidhw_to_dhwio"),
        _row(
            "down{s}.block{b}.downsample.0", f"{_ENCODER}/down{{s}}_block{{b}}/downsample/conv", "pointwise"
        ),
        _row("up{s}.{n:conv1|conv2}.0", f"{_DECODER}/up{{s}}/{{n}}/conv", "pointwise"),
        _row("up{s}.tp_conv.0", f"{_DECODER}/up{{s}}/tp_conv", "conv_transpose_3d"),
        _row("tp_conv1.0", f"{_DECODER}/tp_conv1", "conv_transpose_3d"),
        *array("tp_conv1.0.bias", f"{_DECODER}/tp_conv1/bias"),
        _row("conv.0", f"{_DECODER}/conv", "oidhw_to_dhwio"),
        *array("conv.0.bias", f"{_DECODER}/conv/bias"),
        _row("tp_conv2", f"{_DECODER}/tp_conv2", "doubled"),
        *array("tp_conv2.bias", f"{_DECODER}/bias"),
    ),
)
