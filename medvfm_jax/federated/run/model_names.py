"""The models a run leaves: names of them in scores, and a client's from the shared delta and what the client keeps."""

from collections.abc import Mapping
from typing import Any

REFERENCES = "references"  # beside the leaves of a client: what InstanceMixed compares an image with
SHARED_MODEL = "the shared model"


def own_model(site: str) -> str:
    """Name of a client's model in scores."""
    return f"the model of {site}"


def merged(own: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The whole delta of a client: the leaves that it keeps in the places of the shared ones."""
    found = dict(shared)
    for name, child in own.items():
        old = found.get(name)
        found[name] = merged(child, old) if isinstance(child, Mapping) and isinstance(old, Mapping) else child
    return found
