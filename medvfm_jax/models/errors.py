"""Errors of building a model."""

from medvfm_jax.types import MedvfmError


class UnknownModel(MedvfmError, ValueError):
    """The name is not in the catalog."""


class BadModelOption(MedvfmError, ValueError):
    """An option that the model does not have, or a value that does not fit."""


class NotConvertible(MedvfmError, ValueError):
    """A model that cannot be turned into the one asked for."""
