"""Which block a FeSViBS delta leaves the encoder after."""

import jax

from medvfm_jax.federated.core.personal_parts import leaf_name


def block_of(delta):
    """The number () of blocks whose exit is open."""
    leaves = jax.tree_util.tree_leaves_with_path(delta)
    return sum((leaf > 0.5).sum() for path, leaf in leaves if leaf_name(path).endswith("/open"))
