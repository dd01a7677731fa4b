"""What `plan` can be asked for: frozen records, the same for Python and the command line."""

from dataclasses import dataclass
from typing import Literal

from medvfm_jax.settings.groups import ObjectiveName


@dataclass(frozen=True)
class Training:
    """What is trained, and how much at once."""

    model: str = "sam-b"
    """Model to adapt; no weights are needed."""
    adapter: str = "samed"
    """What trains: samed, med_sa, lora, dora, decoder, linear, full, ...; `medvfm systems` lists all."""
    set: tuple[str, ...] = ()
    """Option of the adapter, for example lora.rank=8; may be given several times."""
    global_batch: int = 8
    """Images per step, over all devices."""
    accumulate: int | None = None
    """Parts a batch is cut into to save memory; by default as in `adapt`: one, on CPUs an image at a time."""
    prompts_per_image: int | None = None
    """Box prompts per image, points for a model that knows points alone; 0: prompt-free with --classes outputs, as
    SAMed. By default as in `adapt`: none for samed and models without prompts, else 4."""
    embeddings: Literal["auto", "off"] = "auto"
    """As in `adapt`: where the image encoder is frozen its embeddings are kept, and the step is that of the decoder
    alone; `off`: images are encoded in every step."""
    classes: int = 2
    """Outputs of a prompt-free model, background included."""
    image_size: int | None = None
    """Pixels along one side; by default those of the model."""
    window: tuple[int, ...] = ()
    """As in `adapt`: slices of a slab, or depth, height and width of a patch of one channel; by default the model's."""
    tile: int | None = None
    """As in `adapt`: side of the squares that fill a prompt-free model's input. No step is larger for it, but nothing
    of a frozen encoder is kept."""
    objective: ObjectiveName = "auto"
    """Loss, as in `adapt`; by default that of the system."""
    dtype: str = "float32"
    """Number format of the computation, as in `adapt`; parameters stay float32. On accelerators choose bfloat16."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights; what trains stays float32."""
    keep: Literal["nothing", "products", "everything"] = "everything"
    """What SAM keeps of a group of blocks for the backward pass: its input alone, also the results of products and
    attention kernels, or everything; the rest is computed again. Other models keep everything."""
    scan_blocks: bool = False
    """Compile one group of blocks of SAM, ViT or CLIP, over which a loop runs, instead of every block on its own: takes
    less time to compile, and copies what is kept for the backward pass."""


@dataclass(frozen=True)
class PlanConfig(Training):
    """A training step and the devices it is compiled for."""

    topology: str = "cpu"
    """`cpu`, this machine; a TPU slice such as v5e:16x16 (extra [tpu]) or GPUs such as h100:8 or, on 4 hosts,
    h100:4x8 (extra [cuda]), which need not be here."""
    mesh: str | None = None
    """Devices per mesh axis, for example data=64,model=4; by default all on data."""
    rules: str = "replicated"
    """Where parameters live: replicated, fsdp (sharded over the data axis, whole over an axis replica), tensor (blocks
    sharded over the model axis)."""
    sums: Literal["float32", "bfloat16"] = "float32"
    """Number format in which TPUs sum gradients of --dtype bfloat16 over devices; bfloat16 sends half the bytes and
    rounds at every addition."""
    kernel_efficiency: float = 1 / 3
    """Utilisation is given as a range: with attention kernels at the bound that their products and traffic set, and
    with kernels that reach this share of it. No TPU has measured them: the default is an assumption."""


@dataclass(frozen=True)
class CohortPlanConfig(PlanConfig):
    """A round of FedAvg; ``global_batch`` counts the images of one local step, of all clients together."""

    clients: int = 1
    """Clients of a round."""
    local_steps: int = 1
    """Optimizer steps of each client in a round."""
    at_once: int = 1
    """Clients that a device computes at the same time; the others wait."""
