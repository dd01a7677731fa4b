"""Which layer of the network a leaf of a delta belongs to, for systems that train only some layers."""

import re

import jax
from jax import Array

from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Tree

_ROOT = re.compile(r"(^|/)(?=(image_encoder|prompt_encoder|mask_decoder|second_decoder)(/|$))")
_NUMBERED = re.compile(r"(.*(?:blocks|layers)_\d+)/")


def layer_of(name: str) -> str:
    """Leaf name -> layer: "lora/image_encoder/blocks_3/attn/qkv/a_q" -> "image_encoder/blocks_3".

    The last numbered block or layer on the path, else the module itself; names of chain parts do not count, so all
    adapters in a block are one layer.
    """
    root = _ROOT.search(name)
    name = name[root.end() :] if root else name
    numbered = _NUMBERED.match(name)
    return numbered[1] if numbered else name.rpartition("/")[0]


def layers_of(delta: Tree) -> list[str]:
    """Layers of a delta, in the order of their numbers, so that the last blocks of an encoder come late."""
    found = {layer_of(leaf_name(path)) for path, _ in jax.tree.leaves_with_path(delta)}
    return sorted(found, key=natural_order)


def scale_layers(tree: Tree, layers: list[str], factors: Array) -> Tree:
    """Multiply every leaf by the factor (L,) of its layer; leaves of other layers stay."""

    def scale(path: tuple, leaf: Array) -> Array:
        layer = layer_of(leaf_name(path))
        return leaf * factors[layers.index(layer)].astype(leaf.dtype) if layer in layers else leaf

    return jax.tree.map_with_path(scale, tree)


def natural_order(name: str) -> list[tuple[bool, int | str]]:
    """Sort key for names that puts blocks_2 before blocks_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]
