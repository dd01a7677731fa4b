"""What the server trusts: names of sites, the node that speaks for each, and the largest weight of each."""

import math
import re
from collections.abc import Mapping, Sequence

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.network.agreement import (
    Agreement,
)
from medvfm_jax.federated.network.messages import SITE_NAME
from medvfm_jax.federated.secure.secure_sum import SecureSum


def largest_weights(
    agreement: Agreement, sites: Sequence[str] | Mapping[str, float], largest_weight: float | None
) -> dict[str, float]:
    """{site: the largest weight it may claim}; raises BadFederation if no bound is given."""
    if largest_weight is not None:
        if not largest_weight > 0:
            raise BadFederation(f"largest_weight is {largest_weight}, expected a positive number.")
        return dict.fromkeys(sites, float(largest_weight))
    if agreement.algorithm.weights == "equal":
        return dict.fromkeys(sites, 1.0)
    if not isinstance(sites, Mapping):
        raise BadFederation(
            "The largest weight of a site is not set: give sites as {name: number of samples it declared}, or "
            "largest_weight."
        )
    for site, samples in sites.items():
        if not 0 < samples < math.inf:
            raise BadFederation(f"Site '{site}' declared {samples} samples, expected a positive number.")
    return {site: float(samples) for site, samples in sites.items()}


def check_sites(sites: Sequence[str], nodes: Mapping[str, int] | str | None) -> None:
    """Raise BadFederation for names that cannot be sent, and unless every name belongs to one node of its own."""
    if not sites or len(set(sites)) < len(sites):
        raise BadFederation("Every site needs a name of its own, and there must be at least one.")
    for site in sites:
        if not re.fullmatch(SITE_NAME, site, re.ASCII):
            raise BadFederation(
                f"A site cannot be named '{site:.80}'; give 1 to 64 letters, digits, '.', '_' and '-', a letter or "
                "digit first."
            )
    if nodes == "first_come":
        return
    if not isinstance(nodes, Mapping):
        raise BadFederation(
            "Nodes are not assigned to sites: give nodes as {name: number of its node}, or "
            '"first_come" to trust the first node that claims a name.'
        )
    without = [site for site in sites if site not in nodes]
    if without or len(set(nodes.values())) < len(nodes):
        what = f"no node is given for '{without[0]}'" if without else "two sites have the same node"
        raise BadFederation(f"Every site needs a node of its own: {what}.")


def check_secure(secure: SecureSum, sites: int, privacy: Privacy | None) -> None:
    """Raise BadFederation for a sum set up for another number of sites, or with noise of the server."""
    if secure.clients != sites:
        raise BadFederation(
            f"Secure aggregation was set up for {secure.clients} sites and there are {sites}."
        )
    if privacy is not None:
        raise BadFederation(
            "With secure aggregation the sites add the noise: give the agreement "
            "secure_sum.distributed_noise, and no privacy here."
        )
