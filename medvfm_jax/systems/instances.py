"""Objects without prompts: the decoder learns a distance map beside the classes, a watershed cuts objects out of it."""

from typing import Any

from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.systems.places import tuned_decoder
from medvfm_jax.systems.record import System
from medvfm_jax.types import ModelSpec


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    if prompt != "none":
        raise BadAdapterConfig(f"Instances are found without prompts; leave out --prompt {prompt}.")
    return {"kind": "instances", "classes": classes}


SYSTEM = System(
    description="objects without prompts: classes and the distance of each pixel to the edge of its object, cut by a "
    "watershed (Naylor et al. 2019; Archit et al. 2025, automatic instance segmentation)",
    source="https://doi.org/10.1038/s41592-024-02580-4",
    adapter=tuned_decoder,
    transform=_transform,
    prompts="none",
    objective={"promptable": "instances", "semantic": "instances"},
    learning_rate=5e-4,
    differences="SAM's own decoder with one more token, on a frozen encoder, in place of a second decoder; one "
    "distance, that to the edge, divided by the largest in the object, where the publications have another "
    "normalisation or a second one to the centre.",
)
