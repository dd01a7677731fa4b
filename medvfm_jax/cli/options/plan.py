"""Options of `medvfm plan`."""

from dataclasses import dataclass

import tyro

from medvfm_jax.settings.plan import PlanConfig


@dataclass(frozen=True)
class PlanArgs(PlanConfig):
    """Compile a training step for this machine, or TPUs or GPUs that are not here; report memory, work and time.

    Example: medvfm plan --model sam-h --adapter samed --topology v5e:16x16 --global-batch 1024 --mesh data=256

    Example: medvfm plan --model sam-b --adapter full --topology v5p:2x2x1 --rules fsdp --json

    Example: medvfm plan --model sam-b --adapter samed --topology h100:2x8 --global-batch 128

    Example: medvfm plan --model sam-h --topology v5e:4x4 --global-batch 64 --sweep --most 6

    Example: medvfm plan --model sam-b --topology v5e:16x16 --mesh clients=256 --clients 512 --global-batch 512

    No weights are needed and nothing of the model is allocated. Compiling takes minutes. The memory is the
    compiler's own accounting; the time is an estimate, see tpu/README.md.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the adapter, for example lora.rank=8; may be given several times."""
    sweep: bool = False
    """Compile the sensible meshes, rules, parts of the batch and what is kept, and rank them."""
    most: int = 8
    """Programs that --sweep compiles at most, likeliest first: few parts of the batch before many, little kept
    before much, no model axis before one, whole parameters before divided ones, all in a
    loop over equal blocks; then the best of them once more, unrolled."""
    clients: int = 0
    """Plan a federated round (FedAvg, AdamW) of so many clients over the mesh axis clients instead of a step;
    --global-batch then counts the images of one local step of all clients together."""
    local_steps: int = 1
    """Steps of each client in that round."""
    at_once: int = 1
    """Clients of that round that a device computes at the same time."""
