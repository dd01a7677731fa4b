"""What can be wrong with a federation before it starts."""

from medvfm_jax.types import MedvfmError


class BadFederation(MedvfmError):
    """Parts of a federation that do not fit together; the message says which and what to do."""
