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
    """Shard the longest axis that is a multiple of the size of mesh axis ``axis``; of equally long ones the last.

    Attributes:
        axis: name of the mesh axis.
        skip: number of leading array axes never sharded, such as the stack that a scan runs over.
        least: arrays with fewer elements are replicated, because gathering them costs more than it saves.
    """

    axis: str
    skip: int = 0
    least: int = 2**16


Where = PartitionSpec | Largest
Rules = Sequence[tuple[str, Where]]

_EVERYWHERE: tuple[str, Where] = (r".*", PartitionSpec())
_WIDENING = r"image_encoder/(.*/)?(attn/qkv|mlp/(lin1|fc1))"
# A few million numbers; where they are divided, XLA divides their few tokens by features instead of by images.
_SMALL = r"(mask_decoder|prompt_encoder)/.*"
_NARROWING = r"image_encoder/(.*/)?(attn/proj|mlp/(lin2|fc2))"


def replicated() -> Rules:
    """Every parameter whole on every device: the rule for adapters, whose gradients are small.

    Returns:
        One rule that matches every path.
    """
    return (_EVERYWHERE,)


def fsdp(least: int = 2**16) -> Rules:
    """FSDP: every large array sharded over the data axis (Zhao et al. 2023; Rajbhandari et al. 2020).

    The compiler gathers an array before its use and reduce-scatters its gradient.  Of stacked blocks the leading axis
    is not sharded, so that a scan gathers one group at a time.  Mask decoder and prompt encoder stay whole.

    With a mesh axis "replica" this is hybrid sharding: arrays are divided within a group and whole between groups,
    whose gradients are summed shard by shard.  On slices of 64 chips and more it is needed, see ``tpu/README.md``.

    Args:
        least: arrays with fewer elements are replicated.

    Returns:
        Rules for small modules, for stacked blocks, for all other paths.

    References:
        https://arxiv.org/abs/2304.11277 (FSDP)
        https://arxiv.org/abs/1910.02054 (ZeRO, stage 3)
    """
    return (
        (_SMALL, PartitionSpec()),
        (r"image_encoder/blocks/.*", Largest(DATA, 1, least)),
        (r".*", Largest(DATA, 0, least)),
    )


def tensor() -> Rules:
    """Tensor parallelism over the model axis for ViT and SAM, as in Megatron-LM (Shoeybi et al. 2019, section 3).

    qkv and the first layer of the MLP are column-parallel (sharded by output), proj and the second layer row-parallel
    (by input), so that a block needs two all-reduces.  qkv's columns are [q|k|v], as in the checkpoints, not grouped by
    head, so the compiler exchanges activations once more per block to bring whole heads together; the plan counts it.
    LoRA's ``b`` is sharded as the outputs, ``a`` as the inputs; everything else is replicated.

    Returns:
        Rules; the last replicates what no other matches.

    References:
        https://arxiv.org/abs/1909.08053
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
    """PartitionSpec of the array at ``path``, by the first rule whose regex matches the whole path.

    Args:
        rules: ordered (regex, placement) pairs; a PartitionSpec is for the last axes of the array.
        mesh: the mesh whose axes the placements name.
        path: "module path/name" of the array.
        shape: its shape.

    Returns:
        PartitionSpec with one entry per axis of the array.

    Raises:
        BadRules: no rule matches, or the matching one names an axis that the mesh does not have, has more entries
            than the array has axes, or shards an axis whose length is no multiple of the devices.
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
