"""Settings of `analyze kernel`."""

import dataclasses

from medvfm_jax.settings.analyze.adapter import AdapterConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class KernelConfig(AdapterConfig):
    """How fast adapters can learn before any is trained, from their empirical neural tangent kernels."""

    _: dataclasses.KW_ONLY
    data: str
    """Folder with labelled images, or name of a built-in dataset; images of the training part are looked at."""
    adapters: tuple[str, ...] = ("lora", "decoder")
    """Systems to compare, each at its start."""
    outputs: int = 16
    """Logits of each image that are looked at, half inside of objects; each costs a pass backwards."""
    ridge: float = 0.01
    """Share of the largest eigenvalue below which a direction hardly counts in the effective dimension."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.outputs >= 2, "outputs", self.outputs, "at least 2")
        require(0 < self.ridge < 1, "ridge", self.ridge, "between 0 and 1")
        require(len(self.adapters) >= 1, "adapters", self.adapters, "one or more")
        if repeated := [name for name in self.adapters if self.adapters.count(name) > 1]:
            raise BadConfig(f"adapters has {repeated[0]} twice; it would give the same row.")
