"""Options of `medvfm adapt`."""

from dataclasses import dataclass
from typing import Literal

import tyro

from medvfm_jax.settings.adapt import AdaptConfig


@dataclass(frozen=True)
class AdaptArgs(AdaptConfig):
    """Adapt a model to a folder of labelled images, training a fraction of its parameters.

    Example: medvfm adapt --data data/dsb2018 --model lite-medsam --adapter samed --set lora.rank=8 --out runs/a

    Kill it at any moment and give the same command with --resume: the result has the same bits on CPU.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the adapter, for example lora.rank=8; may be given several times."""
    mesh: str | None = None
    """Train over several devices: `all`, or how many on each axis, for example data=4,model=2. May change when a run
    is resumed."""
    rules: Literal["replicated", "fsdp", "tensor"] = "replicated"
    """With --mesh, where the weights are: replicated, sharded over the data axis (fsdp), or blocks sharded over
    the model axis (tensor)."""
    sums: Literal["float32", "bfloat16"] = "float32"
    """With --mesh and --dtype bfloat16, the number format in which TPUs sum gradients over devices; bfloat16 sends half
    the bytes and rounds at every addition."""
    distributed: bool = False
    """One process per host, all started with this command, --out on a disk that they share or with --mirror; found
    automatically on TPU slices, under Slurm and Open MPI."""
    coordinator: str | None = None
    """With --distributed elsewhere: host:port of process 0."""
    processes: int | None = None
    """With --coordinator: how many processes there are."""
    process: int | None = None
    """With --coordinator: the number of this process, from 0."""
