"""docs/adapter-costs.md: what every system adds to SAM ViT-B, from shapes alone; no weights are loaded.

python -m experiments.adapter_costs

Parameters are those of the delta, FLOPs those of the matrix products and convolutions of one image and one box, and
whether a delta merges is asked of the adapter itself.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medvfm_jax import models, systems
from medvfm_jax.adapters import NoSuchSite, NotMergeable, WrongSite, adapt_model, count, touches_encoder
from medvfm_jax.models.model import Model
from medvfm_jax.plan.flops import forward_flops, training_flops
from medvfm_jax.systems.fitting import as_trained
from medvfm_jax.types import Params, Prompts

PAGE = Path(__file__).parent.parent / "docs" / "adapter-costs.md"
MODEL = "sam-b"
BOX = Prompts(jax.ShapeDtypeStruct((1, 2, 2), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32))
_HEAD = """# What adapters cost

Made by `python -m experiments.adapter_costs` from shapes of SAM ViT-B (`sam-b`, 1024 pixels, one box); do not edit. A
delta that merges leaves a model of the original size and speed, or of both with the modules that the system adds ("its
modules stay"); `medvfm weights export` writes the former. FLOPs count matrix products and convolutions: of a
prediction, against the model alone, and of a training step without what is computed twice. Where the image encoder
is unchanged, its embeddings can be cached and the encoder drops out of both. Constants that are stored with a delta
and not trained are in its size, not among its parameters. `sd_trans` is counted on single slices, where its attention
over slices rests; systems with modules of their own on the model that they make of it, for two classes, without a box
where they take none, and for one slice of a slab (`samus` sees images of 256 pixels). What each system is:
[Methods](methods.md).
"""


class Cost(NamedTuple):
    """What a system costs; all numbers are None where it is not counted, and ``merges`` says why.

    trained: parameters. size: bytes of the delta. merges: "yes", or why not. encoder: whether it is changed.
    forward, training: FLOPs of one image or slice.
    """

    name: str
    merges: str
    trained: int | None = None
    size: int | None = None
    encoder: bool | None = None
    forward: int | None = None
    training: int | None = None


def cost(name: str, model: Model, params: Params) -> Cost:
    """Cost of a system on a model, from the shapes of its parameters."""
    try:
        plain = model
        model, params = as_trained(systems.SYSTEMS[name], model, params)
        adapted = adapt_model(systems.adapter(name, model), model)
        delta = jax.eval_shape(adapted.init, jax.random.key(0), params)
    except (NoSuchSite, WrongSite) as error:
        return Cost(name, f"does not fit: {error}")
    image = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    slices = model.spec.input_shape[0] if model.spec.rank == 3 else 1
    box = BOX if model.spec.task == "promptable" else None
    found, merges = count(delta, params), _merges(adapted, params, delta)
    if model is not plain and merges == "yes":
        merges = "yes, its modules stay"

    def loss(params, delta, image, box):
        return adapted.apply(params, delta, image, box).logits.astype(jnp.float32).sum(), {}

    forward = forward_flops(lambda p, d, x, b: adapted.apply(p, d, x, b).logits, params, delta, image, box)
    training = training_flops(loss, params, delta, image, box).model
    return Cost(
        name,
        merges,
        found.trained,
        found.bytes,
        touches_encoder(delta),
        forward // slices,
        training // slices,
    )


def _merges(adapted, params: Params, delta) -> str:
    try:
        jax.eval_shape(adapted.merge, params, delta)
    except NotMergeable as error:
        reasons = dict.fromkeys(re.findall(r"\(([^()]*)\)", str(error)))
        return f"no: {'; '.join(reasons)}"
    return "yes"


def page(costs: Iterable[Cost], alone: int) -> str:
    """The page; alone: FLOPs of the model without an adapter."""
    columns = ("system", "merges", "parameters", "delta", "encoder", "prediction", "training step")
    rows = [_row(each, alone) for each in costs]
    cells = [columns, ["---"] * len(columns), *rows]
    table = ["| " + " | ".join(row) + " |" for row in cells]
    text = f"The model alone: {alone / 1e9:,.1f} GFLOP for a prediction."
    return "\n".join([_HEAD, text, "", *table, ""])


def _row(found: Cost, alone: int) -> Sequence[str]:
    if found.trained is None:
        return (f"`{found.name}`", found.merges, *[""] * 5)
    more = 100 * (found.forward - alone) / alone
    return (
        f"`{found.name}`",
        found.merges,
        f"{found.trained:,}",
        f"{found.size / 2**20:.2f} MiB",
        "changed" if found.encoder else "unchanged",
        f"{more:+.2f} %",
        f"{found.training / 1e9:,.0f} GFLOP",
    )


def main() -> None:
    """Write the page."""
    model = models.build(MODEL)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    alone = forward_flops(lambda p, x, b: model.apply(p, x, b).logits, params, image, BOX)
    PAGE.write_text(
        page((cost(name, model, params) for name in systems.SYSTEMS.names()), alone), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
