"""Options of `medvfm federate`."""

from dataclasses import dataclass
from typing import Literal

import tyro

from medvfm_jax.settings.federate import FederateConfig


@dataclass(frozen=True)
class FederateArgs(FederateConfig):
    """Adapt a model to the images of several hospitals that share updates instead of images (a simulation).

    Example: medvfm federate --data data/dsb2018 --preset decoder --rounds 20 --codec int8 --out runs/fed

    Example: medvfm federate --data data/dsb2018 --preset lora --algorithm ffa_lora --dp-epsilon 8 --dp-unit patient

    Baselines: --algorithm local (every client alone) and --algorithm centralised (all images in one place). Kill it at
    any moment and give the same command with --resume: the result has the same bits on CPU.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of a part of the run: of the adapter (lora.rank=8), the algorithm (algorithm.mu=0.1, or one per client:
    algorithm.ranks=2,4,8) or a codec (codec.fraction=0.05, down_codec.rank=2); may be given several times."""
    mesh: str | None = None
    """Divide the clients of a round over several devices: `all`, or how many on each axis, for example clients=4,data=2
    (data divides the images of a client's step). May change when a run is resumed."""
    rules: Literal["replicated", "fsdp", "tensor"] = "replicated"
    """With --mesh, where the base weights are: replicated, sharded over the data axis (fsdp), or blocks sharded over
    the model axis (tensor)."""
