"""Adapt, distil and federate vision foundation models for medical images, as pure JAX functions."""

__version__ = "0.1.0"
