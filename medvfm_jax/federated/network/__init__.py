"""A federation over a real network: messages, checks, the hospital's side, the server's side; Flower carries the bytes.

``flower_app`` makes a Flower ClientApp and ServerApp of these; nothing here needs Flower.
"""

from medvfm_jax.federated.network.agreement import Agreement, contract
from medvfm_jax.federated.network.coordinator import (
    Coordinator,
    Progress,
    Request,
    RoundRecord,
    make_coordinator,
)
from medvfm_jax.federated.network.messages import BadMessage, Header, Message, decode, encode
from medvfm_jax.federated.network.session import Patience, Transport, run_session
from medvfm_jax.federated.network.site import REASONS, Site, SiteFailed, make_site

__all__ = [
    "REASONS",
    "Agreement",
    "BadMessage",
    "Coordinator",
    "Header",
    "Message",
    "Patience",
    "Progress",
    "Request",
    "RoundRecord",
    "Site",
    "SiteFailed",
    "Transport",
    "contract",
    "decode",
    "encode",
    "make_coordinator",
    "make_site",
    "run_session",
]
