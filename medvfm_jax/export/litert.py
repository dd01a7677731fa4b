"""A function of JAX as a LiteRT (TFLite) flatbuffer: StableHLO through the passes of LiteRT's own converter.

The converter has no public interface for StableHLO that was not made from PyTorch; what is called here is what
litert-torch calls. So its version is pinned, and another one is refused.
"""

import contextlib
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.extend.core import jaxpr_as_fun

from medvfm_jax.export.flat import CannotFlatten, flat
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.parts import Part

CONVERTER = "0.5"  # of litert-converter, which the calls below were written for
SIGNATURE = "serving_default"
_NOT_QUANTISED = {
    "regex": ".*",
    "operation": "BATCH_MATMUL",  # with a constant on the left LiteRT cannot prepare it
    "algorithm_key": "no_quantize",
    "op_config": {},
}
_DYNAMIC = {
    "regex": ".*",
    "operation": "*",
    "algorithm_key": "min_max_uniform_quantize",
    "op_config": {
        "weight_tensor_config": {
            "num_bits": 8,
            "symmetric": True,
            "granularity": "CHANNELWISE",
            "dtype": "INT",
        },
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
        "skip_checks": False,
        "min_weight_elements": 0,
    },
}


def write_litert(part: Part, path: Path) -> None:
    """Write a part as .tflite, its weights within.

    Args:
        part: what to write, without open sizes.
        path: of the file.

    Raises:
        CannotExport: an operation that LiteRT does not have, a loop, or another version of the converter.
    """
    version = importlib.metadata.version("litert-converter")
    if not version.startswith(f"{CONVERTER}."):
        raise CannotExport(
            f"litert-converter is {version} and export was written for {CONVERTER}.x: pip install "
            f"'litert-converter=={CONVERTER}.*'."
        )
    try:
        closed = flat(part.portable, *part.shapes())
    except CannotFlatten as error:
        raise CannotExport(f"LiteRT export cannot write out {error}; use --to stablehlo.") from error
    exported = export.export(jax.jit(jaxpr_as_fun(closed)), platforms=["cpu"])(*part.shapes())
    names = [tensor.name for tensor in part.inputs], [tensor.name for tensor in part.outputs]
    path.write_bytes(_converted(exported.mlir_module(), part.name, *names))


def _converted(text: str, name: str, inputs: list[str], outputs: list[str]) -> bytes:
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as api
    from litert_converter.mlir.dialects import stablehlo  # noqa: F401, registers the dialect

    context = ir.Context()
    api.prepare_mlir_context(context)
    try:
        with context:
            module = ir.Module.parse(text)
            api.set_signature(module.operation, SIGNATURE, inputs, outputs)
            module = api.merge_modules([module])
            passes = passmanager.PassManager("builtin.module")
            api.run_convert_to_tfl_passes(module, passes, api.ConvertToTFLConfig())
            left = sorted(
                {found for found in _operations(module) if found.split(".")[0] in ("stablehlo", "chlo")}
            )
            if left:
                raise CannotExport(
                    f"LiteRT has no equal of {', '.join(left)}, which the {name} has; use --to stablehlo, or try "
                    "--to onnx."
                )
            return api.export_flatbuffer_to_bytes(module.operation)
    except (ValueError, RuntimeError, ir.MLIRError) as error:
        first = next(iter(str(error).splitlines()), "no reason given")
        raise CannotExport(
            f"LiteRT's converter refuses the {name} ({first:.200}); use --to stablehlo, or try --to onnx."
        ) from error


def _operations(module: Any) -> list[str]:
    from litert_converter.mlir import ir

    found: list[str] = []

    def visit(operation: Any) -> Any:
        found.append(operation.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def quantise_litert(path: Path, out: Path) -> None:
    """8-bit weights for each channel and 8-bit activations as they come, of a .tflite file.

    Args:
        path: of the file in float32.
        out: of the file to write.
    """
    from litert_quantizer import quantizer

    with contextlib.redirect_stdout(io.StringIO()):  # it reports sizes there, where results of commands go
        found = quantizer.Quantizer(str(path), [_DYNAMIC, _NOT_QUANTISED]).quantize()
    out.write_bytes(bytes(found.quantized_model))
