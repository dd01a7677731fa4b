"""Where each parameter lives: ordered rules (regex, placement), the first that matches a whole path counts.

A path is "module path/name", such as ``image_encoder/blocks_3/attn/qkv/kernel``; a delta's arrays have the path of the
module they adapt and their own name (``.../attn/qkv/b_q``).  A placement is a PartitionSpec for the *last* axes of an
array, so that one rule serves plain blocks and stacked ones (``models.scan``), or ``Largest``.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from medvfm_jax.catalog import Catalog
from medvfm_jax.mesh_axes import DATA, MODEL
from medvfm_jax.parallel.errors import BadRules


@dataclass(frozen=True)
class Largest:
    """Divide the longest axis that can be divided over mesh axis ``axis``; the first such from behind in a tie.

    skip: leading axes never divided (the stack that a scan runs over).  least: arrays with fewer elements stay whole,
    because collecting them costs more than it saves.
    """

    axis: str
    skip: int = 0
    least: int = 2**16


Placement = PartitionSpec | Largest
Rules = Sequence[tuple[str, Placement]]

_EVERYWHERE: tuple[str, Placement] = (r".*", PartitionSpec())
_WIDENING = r"image_encoder/(.*/)?(attn/qkv|mlp/(lin1|fc1))"
_NARROWING = r"image_encoder/(.*/)?(attn/proj|mlp/(lin2|fc2))"


def replicated() -> Rules:
    """Every parameter whole on every device: the rule for adapters, whose gradients are small."""
    return (_EVERYWHERE,)


def fsdp(least: int = 2**16) -> Rules:
    """Every large array divided over "data" (FSDP, Zhao et al. 2023; ZeRO stage 3, Rajbhandari et al. 2020).

    The compiler collects an array before its use and scatters its gradient.  Of stacked blocks the stack stays whole,
    so that a scan collects one group at a time.
    """
    return ((r"image_encoder/blocks/.*", Largest(DATA, 1, least)), (r".*", Largest(DATA, 0, least)))


def tensor() -> Rules:
    """Blocks of ViT and SAM divided over "model": Megatron's columns, then rows (Shoeybi et al. 2019, section 3).

    qkv and the first layer of the MLP are divided by output, proj and the second by input, so that a block needs two
    sums over devices.  qkv's columns are [q|k|v], as in the checkpoints, not grouped by head, so the compiler moves
    activations once more per block to bring whole heads together; the plan counts it.  LoRA's ``b`` follows the
    outputs, ``a`` the inputs; everything else is everywhere.
    """
    return (
        (_WIDENING + r"/(kernel|b(_\w)?)", PartitionSpec(None, MODEL)),
        (_WIDENING + r"/bias", PartitionSpec(MODEL)),
        (_NARROWING + r"/(kernel|a)", PartitionSpec(MODEL, None)),
        _EVERYWHERE,
    )


RULES: Catalog[Callable[[], Rules]] = Catalog(
    "set of sharding rules", {"replicated": replicated, "fsdp": fsdp, "tensor": tensor}, BadRules
)


def spec_of(rules: Rules, mesh: Mesh, path: str, shape: Sequence[int]) -> PartitionSpec:
    """PartitionSpec, one entry per axis, of the array at ``path`` by the first rule that matches it in full.

    Raises BadRules if no rule matches, or one that names axes the mesh has not or cannot divide the array by.
    """
    for pattern, placement in rules:
        if re.fullmatch(pattern, path):
            if isinstance(placement, Largest):
                return _largest(placement, mesh, pattern, path, shape)
            return _trailing(placement, mesh, pattern, path, shape)
    patterns = ", ".join(f"'{pattern}'" for pattern, _ in rules)
    raise BadRules(
        f"No sharding rule matches '{path}'; the rules are {patterns}: add one for it, or '.*' last."
    )


def _largest(rule: Largest, mesh: Mesh, pattern: str, path: str, shape: Sequence[int]) -> PartitionSpec:
    parts = _size(mesh, rule.axis, pattern, path)
    entries: list[Any] = [None] * len(shape)
    elements = 1
    for length in shape:
        elements *= length
    fitting = [i for i in range(rule.skip, len(shape)) if shape[i] % parts == 0 and shape[i] >= parts]
    if elements >= rule.least and fitting:
        entries[max(fitting, key=lambda i: (shape[i], i))] = rule.axis
    return PartitionSpec(*entries)


def _trailing(
    spec: PartitionSpec, mesh: Mesh, pattern: str, path: str, shape: Sequence[int]
) -> PartitionSpec:
    if len(spec) > len(shape):
        raise BadRules(
            f"The sharding rule '{pattern}' is for {len(spec)} axes; '{path}' has shape {tuple(shape)}."
        )
    entries = (*[None] * (len(shape) - len(spec)), *spec)
    for length, entry in zip(shape, entries, strict=True):
        for axis in () if entry is None else (entry,) if isinstance(entry, str) else entry:
            parts = _size(mesh, axis, pattern, path)
            if length % parts:
                raise BadRules(
                    f"The sharding rule '{pattern}' divides '{path}' of shape {tuple(shape)} over "
                    f"{axis}={parts}, which does not divide {length}; choose another size of this axis."
                )
    return PartitionSpec(*entries)


def _size(mesh: Mesh, axis: str, pattern: str, path: str) -> int:
    if axis not in mesh.axis_names:
        raise BadRules(
            f"The sharding rule '{pattern}' for '{path}' names the axis '{axis}'; "
            f"the mesh has {', '.join(mesh.axis_names)}."
        )
    return mesh.shape[axis]
