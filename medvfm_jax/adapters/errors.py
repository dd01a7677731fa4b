"""Everything that can go wrong between an adapter and a model."""

from medvfm_jax.types import MedvfmError


class NoSuchSite(MedvfmError):
    """A pattern, or a delta, addresses no module that is called or no parameter that exists."""


class WrongSite(MedvfmError):
    """The module exists, but this adapter cannot act on it."""


class NotMergeable(MedvfmError):
    """The delta cannot be folded into the frozen parameters."""


class JittedApply(MedvfmError):
    """A function that is already jitted hides the modules it calls."""


class BadAdapterConfig(MedvfmError):
    """A preset, an option or a stored adapter configuration that is not known or has the wrong type."""
