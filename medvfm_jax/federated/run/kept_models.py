"""What of the models of a run is stored: the shared one, what each client keeps, features to compare images with."""

from typing import Any

import jax
from numpy.typing import NDArray

from medvfm_jax.federated.core.client_models import Models, model_of
from medvfm_jax.federated.run.resolving import FederatedRun
from medvfm_jax.federated.run.round_data import EVERYBODY
from medvfm_jax.federated.systems.feddpa_inference import references_of
from medvfm_jax.types import Delta


def shared_model(run: FederatedRun, models: Models) -> Delta | None:
    """The model for everybody; local training has none."""
    if run.algorithm == "local":
        return None
    return model_of(models, 0) if run.clients[0].name == EVERYBODY else models.shared


def personal_models(run: FederatedRun, models: Models) -> dict[str, Any]:
    """{client: its own leaves}."""
    found = {}
    for i, client in enumerate(run.clients):
        own = _without_none(jax.tree.map(lambda x: x[i], models.own))  # noqa: B023, used at once
        if own:
            found[client.name] = own
    return found


def _without_none(tree: Any) -> Any:
    """The tree of dictionaries without leaves that are None, and without branches that are empty then."""
    if not isinstance(tree, dict):
        return tree
    kept = {name: _without_none(child) for name, child in tree.items()}
    return {name: child for name, child in kept.items() if jax.tree.leaves(child)}


def references_to_keep(run: FederatedRun, models: Models) -> dict[str, NDArray]:
    """{client: features of its training images with which an image is compared}, of systems that mix per image."""
    if not run.entry.instance_mixing:
        return {}
    params, seed = run.base.params, run.config.seed
    return {
        client.name: references_of(run.adapted, params, model_of(models, i), client.data, seed)
        for i, client in enumerate(run.clients)
    }
