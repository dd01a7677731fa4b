"""A published federated system: what is trained at every client, and the algorithm that combines it."""

from collections.abc import Callable
from typing import NamedTuple

from medvfm_jax.federated.core.records import Algorithm
from medvfm_jax.systems import System


class FederatedSystem(NamedTuple):
    """A published federated system: what is trained at every client, and the algorithm that combines it.

    Attributes:
        system: description, source, adapter and training settings, see ``systems.System``.
        algorithm: (gradient, optimizer, **options) -> Algorithm for ``make_round``; every option has a default. One
            that is called ``params`` takes the frozen weights, one called ``split`` the model in three parts.
        instance_mixing: every image is predicted with its own mixture of the global and the local model (``feddpa``).
    """

    system: System
    algorithm: Callable[..., Algorithm]
    instance_mixing: bool = False

    @property
    def description(self) -> str:
        """One line, with its source."""
        return self.system.description

    @property
    def differences(self) -> str:
        """What differs from its source, see ``systems.System``."""
        return self.system.differences
