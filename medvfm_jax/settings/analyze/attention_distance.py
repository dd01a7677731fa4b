"""Settings of `analyze attention-distance`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import EncodersConfig


@dataclasses.dataclass(frozen=True)
class AttentionDistanceConfig(EncodersConfig):
    """How far the places are that attention connects, layer by layer."""
