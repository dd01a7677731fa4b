"""Write the rows of a layer in one line; the target path follows from the key by the naming rule.

The rule: dots become slashes and an integer component is joined to its predecessor by "_", so
`blocks.{i}.attn.qkv` becomes `blocks_{i}/attn/qkv`.
"""

import re

from medvfm_jax.port_tables.table import PLACEHOLDER, Row

Sources = str | tuple[str, ...]


def path_of(key: str) -> str:
    """Key template -> target path template, by the naming rule."""
    numbers = [m[1] for m in PLACEHOLDER.finditer(key) if m[2] is None or m[2].replace("|", "").isdigit()]
    bare = PLACEHOLDER.sub(lambda match: "{" + match[1] + "}", key)
    for name in numbers:
        bare = bare.replace(f".{{{name}}}", f"_{{{name}}}")
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", bare).replace(".", "/")


def _row(sources: Sources, leaf: str, target: str | None, array: str, layout: str = "none") -> Row:
    keys = (sources,) if isinstance(sources, str) else sources
    return Row(tuple(f"{key}.{leaf}" for key in keys), f"{target or path_of(keys[0])}/{array}", layout)


def dense(source: Sources, target: str | None = None, *, bias: bool = True) -> tuple[Row, ...]:
    """Linear layer; several sources are fused along the output axis."""
    rows = (_row(source, "weight", target, "kernel", "transpose"),)
    return (*rows, _row(source, "bias", target, "bias")) if bias else rows


def conv(source: str, target: str | None = None, *, bias: bool = True) -> tuple[Row, ...]:
    """Convolution, grouped ones included."""
    rows = (_row(source, "weight", target, "kernel", "oihw_to_hwio"),)
    return (*rows, _row(source, "bias", target, "bias")) if bias else rows


def conv_transpose(source: str, target: str | None = None, *, bias: bool = True) -> tuple[Row, ...]:
    """Transposed convolution."""
    rows = (_row(source, "weight", target, "kernel", "conv_transpose"),)
    return (*rows, _row(source, "bias", target, "bias")) if bias else rows


def norm(source: str, target: str | None = None) -> tuple[Row, ...]:
    """LayerNorm, over channels or over the last axis."""
    return _row(source, "weight", target, "scale"), _row(source, "bias", target, "bias")


def batch_norm(source: str, target: str | None = None) -> tuple[Row, ...]:
    """BatchNorm with its frozen statistics; `num_batches_tracked` belongs into `ignored`."""
    statistics = (
        _row(source, "running_mean", target, "mean"),
        _row(source, "running_var", target, "var"),
    )
    return norm(source, target) + statistics


def embedding(source: str, target: str | None = None) -> tuple[Row, ...]:
    """Embedding table (n, dim)."""
    return (_row(source, "weight", target, "embedding"),)


def array(source: str, target: str | None = None) -> tuple[Row, ...]:
    """A bare parameter or buffer, unchanged."""
    return (Row((source,), target or path_of(source)),)
