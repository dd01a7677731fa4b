"""Settings of `analyze receptive-field`."""

import dataclasses

from medvfm_jax.settings.analyze.pictures import EncodersConfig
from medvfm_jax.settings.records import require


@dataclasses.dataclass(frozen=True)
class ReceptiveFieldConfig(EncodersConfig):
    """How much of a picture one place of an encoder's map depends on: the effective receptive field."""

    _: dataclasses.KW_ONLY
    probes: int = 4
    """Vector-Jacobian products of each picture, each with other random signs of the map's channels."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        super().__post_init__()
        require(self.probes >= 1, "probes", self.probes, "at least 1")
