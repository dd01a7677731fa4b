"""What can be wrong with a plan."""

from medvfm_jax.types import MedvfmError


class BadPlan(MedvfmError, ValueError):
    """A plan for hardware or settings that do not exist."""
