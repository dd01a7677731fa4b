"""What a site answered: opened, or refused with the reason why it cannot be used."""

from collections.abc import Callable, Mapping

import jax

from medvfm_jax.federated.core.records import Report, Tree
from medvfm_jax.federated.network.agreement import (
    Contract,
    Upload,
)
from medvfm_jax.federated.network.layouts import payload_bytes, read_payload
from medvfm_jax.federated.network.messages import BadMessage, Header, decode, expect
from medvfm_jax.federated.network.secure_messages import RoundSpent
from medvfm_jax.federated.network.site import REASONS


def open_upload_of(
    shapes: Contract,
    decoded: Callable[[Tree], Tree],
    largest: Mapping[str, float],
    reply: bytes | str,
    wanted: Header,
) -> Report:
    """A site's reply -> its report, or BadMessage with the reason why it cannot be used."""
    if isinstance(reply, str):
        raise BadMessage(reply)
    message = decode(reply, payload_bytes(shapes.upload))
    found = message.header
    check_reply(found, wanted)
    upload: Upload = read_payload(message.payload, found.layout, shapes.upload)
    if not 0 <= float(upload.weight) <= largest[wanted.site]:
        raise BadMessage(
            f"The site claims the weight {float(upload.weight):g}; 0 to {largest[wanted.site]:g} is possible."
        )
    return Report(jax.device_get(decoded(upload.message)), upload.weight, upload.loss, upload.public)


def check_reply(found: Header, wanted: Header) -> None:
    """Raise BadMessage for a failure, and unless the reply is of the site, round and kind that were asked for."""
    check_not_failed(found, wanted.node)
    fields = ("federation", "run", "round", "node", "site", "client", "kind")
    expect(found, **{field: getattr(wanted, field) for field in fields})


def check_not_failed(found: Header, node: int) -> None:
    """A site that failed may not have read of which run and round it was asked, so only its node is compared."""
    if found.kind == "failed":
        expect(found, node=node)
        kind = RoundSpent if found.reason == "spent" else BadMessage
        raise kind(f"The site reports: {REASONS.get(found.reason, 'an unknown reason')}.")
