"""What context blocks refuse."""

from medvfm_jax.types import MedvfmError


class MapTooSmall(MedvfmError):
    """A context block's grid or stride does not fit into the feature map."""
