"""Hospitals adapt a segmentation model together; docs/hospital.md says how to start it.

flwr run experiments/hospitals federation --run-config 'sites="north=123 east=456" images="north=480 east=300"'

A node's own settings: ``--node-config 'site="north" data="/data/cells" state="/var/lib/medvfm"'``, and ``weights`` for
a local file with the base weights.
"""

import logging
from pathlib import Path
from typing import Any

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network import Patience, Progress, Site, make_coordinator
from medvfm_jax.federated.network.flower_app import Session, client_app, log_to_terminal, server_app
from medvfm_jax.federated.network.image_federation import (
    ImageFederation,
    image_site,
    named_numbers,
    prepare,
    save_result,
)

log_to_terminal()
_LOG = logging.getLogger("medvfm_jax.hospitals")


def _site(node: dict[str, Any], run: dict[str, Any]) -> Site:
    weights = Path(node["weights"]) if "weights" in node else None
    prepared = prepare(ImageFederation.read(run), weights, offline=True)
    return image_site(prepared, node["site"], node["data"], Path(node["state"]))


def _session(run: dict[str, Any]) -> Session:
    prepared = prepare(ImageFederation.read(run))
    folder, nodes = Path(run["folder"]), named_numbers("sites", run["sites"])
    images = named_numbers("images", run["images"])
    if images.keys() != nodes.keys():
        raise BadFederation("images must name the same sites as sites: how many images each has declared.")
    declared = {site: images[site] for site in nodes}
    coordinator = make_coordinator(prepared.task, declared, fewest=run["fewest"], nodes=nodes)
    if prepared.guarantee is not None:
        _LOG.info("the sites add noise: %s", prepared.guarantee)
    patience = Patience(
        answer=60 * run["answer-minutes"], joining=60 * run["joining-minutes"], greeting=600.0
    )

    def done(progress: Progress) -> None:
        save_result(prepared, progress, folder / "delta.safetensors")

    return Session(coordinator, run["rounds"], folder, patience=patience, fewest=run["fewest"], done=done)


client = client_app(_site)
server = server_app(_session)
