"""What can be wrong with a mesh or its rules."""

from medvfm_jax.types import MedvfmError


class BadMesh(MedvfmError, ValueError):
    """A mesh that cannot be built, or a batch that cannot be divided over it."""


class BadRules(MedvfmError, ValueError):
    """Sharding rules that leave a parameter out or name what does not exist."""


class BadProcesses(MedvfmError, RuntimeError):
    """Processes that should run one program did not find each other, or one of them was lost."""
