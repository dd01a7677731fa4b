"""The formats by name: how a part is written, made smaller, and what has to be installed for it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.catalog import Catalog
from medvfm_jax.export.litert import quantise_litert, write_litert
from medvfm_jax.export.onnx import quantise_onnx, write_onnx
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.parts import Part
from medvfm_jax.export.stablehlo import write_stablehlo
from medvfm_jax.types import MedvfmError


class UnknownFormat(MedvfmError, ValueError):
    """A name of a format that does not exist."""


class Format(NamedTuple):
    """A format of files.

    description: in one line.  suffix: of its files.  runtime: what ``pip install`` needs beside numpy to run them.
    modules: that writing takes.  extra: of this package that has them.
    write: (part, path).  quantise: (file in float32, file to write), None where there are no 8-bit files.
    """

    description: str
    suffix: str
    runtime: str
    modules: tuple[str, ...]
    extra: str
    write: Callable[[Part, Path], None]
    quantise: Callable[[Path, Path], None] | None


FORMATS: Catalog[Format] = Catalog(
    "format",
    {
        "stablehlo": Format(
            "jax.export, which JAX and compilers of OpenXLA read",
            ".stablehlo",
            "jax",
            (),
            "",
            write_stablehlo,
            None,
        ),
        "onnx": Format(
            "ONNX Runtime, OpenVINO, viewers",
            ".onnx",
            "onnxruntime",
            ("onnx", "onnxruntime"),
            "onnx",
            write_onnx,
            quantise_onnx,
        ),
        "litert": Format(
            "LiteRT, which was TensorFlow Lite",
            ".tflite",
            "ai-edge-litert",
            ("litert_converter", "ai_edge_litert"),
            "litert",
            write_litert,
            quantise_litert,
        ),
    },
    UnknownFormat,
)


def require_installed(name: str, *, int8: bool = False) -> Format:
    """A format by name, if what it needs is installed.

    Args:
        name: of the format.
        int8: 8-bit files are wanted too.

    Returns:
        The format.

    Raises:
        CannotExport: something is not installed.
        UnknownFormat: there is no such format.
    """
    chosen = FORMATS[name]
    modules = (*chosen.modules, *(("litert_quantizer",) if int8 and name == "litert" else ()))
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        more = (
            " and pip install --no-deps 'litert-converter==0.5.*' 'litert-quantizer==0.11.*'"
            if name == "litert"
            else ""
        )
        raise CannotExport(
            f"Export to {name} needs {' and '.join(missing)}: pip install 'medvfm-jax[{chosen.extra}]'{more} "
            "(docs/export.md)."
        )
    return chosen
