"""What can be wrong with privacy parameters, before anything is released."""

from medvfm_jax.federated.core.errors import BadFederation


class BadPrivacy(BadFederation, ValueError):
    """Privacy parameters that cannot mean what was intended; the message says which and what to do."""
