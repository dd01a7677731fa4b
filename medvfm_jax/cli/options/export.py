"""Options of `medvfm export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medvfm_jax.settings.export import ExportConfig


@dataclass(frozen=True)
class ExportArgs(ExportConfig):
    """Write a model as files of another runtime, checked against JAX, with a card and a bundle that runs them.

    Example: medvfm export runs/a --to onnx --out exported/a

    Example: medvfm export --model lite-medsam --to litert --int8 --out exported/lite

    The folder holds encoder and decoder (or one model without prompts), model.json and README.md, check.json, and
    run.py, which needs numpy and the runtime alone.
    """

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """Run directory whose model is written, adapted; it knows its base weights."""
