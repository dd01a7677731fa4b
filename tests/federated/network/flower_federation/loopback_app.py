"""The federation of quadratics of the other tests as a Flower app; ``test_flower_processes`` starts it."""

import time
from pathlib import Path

from medvfm_jax.federated.network import Patience, Site, make_coordinator
from medvfm_jax.federated.network.flower_app import Session, client_app, log_to_terminal, server_app
from tests.federated.cases import STEPS, data
from tests.federated.network.loopback import KEY, SITES, rows, scaffold_agreement

log_to_terminal()
PATIENCE = Patience(answer=300.0, joining=300.0, greeting=120.0, pause=1.0, tries=1)


def _site(node: dict, run: dict) -> Site:
    name, state = node["site"], Path(node["state"])

    def shard(round_: int) -> tuple:
        """Hold one site in one round until a file appears, so that a test can end its process in the middle."""
        if (name, round_) == (run["held-site"], run["held-round"]):
            (state / "held").touch()
            while not (state / "released").exists():
                time.sleep(0.2)
        return rows(data(), SITES.index(name)), STEPS

    return Site(scaffold_agreement(), name, shard, state)


def _session(run: dict) -> Session:
    coordinator = make_coordinator(scaffold_agreement(), SITES, nodes="first_come")
    return Session(coordinator, run["rounds"], Path(run["folder"]), KEY, PATIENCE, fewest=2)


client = client_app(_site)
server = server_app(_session)
