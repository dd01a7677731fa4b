"""An image encoder whose weights no longer change, run by another runtime; what decodes stays in JAX."""

import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters import AdaptedModel, NotMergeable, touches_encoder
from medvfm_jax.export.bundle import network
from medvfm_jax.export.checking import FLOAT_BOUND, BeyondBound, part_record
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.parts import encoder_part
from medvfm_jax.export.run import export_encoder
from medvfm_jax.fetch import sha256_of
from medvfm_jax.models.model import Model
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.export import INT8_BOUND, FormatName
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.settings.runtime import RuntimeName
from medvfm_jax.types import Delta, Params

_FORMATS: dict[str, tuple[FormatName, str]] = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "litert": ("litert", "ai-edge-litert"),
}  # name of a runtime -> format of its files, and the package that has it
_INT8 = "-int8"


class FrozenEncoder(NamedTuple):
    """An encoder outside JAX.

    encode: prepared image (S, S, 3) float32 -> embedding (h, w, c) float32, numpy.
    record: what made embeddings, for scores and runs: runtime, version, bits, the error at export and its bound.
    words: what embeddings follow from beside the image, for caches.
    adapted: whether a delta is folded into it, so that another delta needs another encoder.
    """

    encode: Callable[[NDArray], NDArray[np.float32]]
    record: Mapping[str, Any]
    words: str
    adapted: bool


def frozen_encoder(
    runtime: RuntimeName,
    model: Model,
    params: Params,
    adapted: AdaptedModel | None = None,
    delta: Delta | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> FrozenEncoder | None:
    """The encoder of a model, exported once, checked, kept in the cache folder and opened.

    Args:
        runtime: what runs it.
        model: whose encoder.
        params: its weights.
        adapted: the model with its delta; a delta that reaches the encoder is folded into the weights.
        delta: of ``adapted``.
        say: told before work that takes a while.

    Returns:
        The encoder with as many threads as the process may use cores; None for "jax".

    Raises:
        CannotExport: the runtime is not installed, an encoder that cannot be written, or one that differs from JAX by
            more than ``INT8_BOUND`` (8 bits) or 1e-4.
        BadConfig: an adapter that cannot be folded into the encoder, a model of volumes, or one that computes in
            bfloat16.
    """
    if runtime == "jax":
        return None
    name, int8 = runtime.removesuffix(_INT8), runtime.endswith(_INT8)
    to, package = _FORMATS[name]
    spec = model.spec
    if spec.rank == 3:
        raise BadConfig(f"{spec.name} sees volumes, which JAX alone encodes; leave out --runtime {runtime}.")
    folded = adapted is not None and delta is not None and touches_encoder(delta)
    if folded:
        params = _merged(adapted, params, delta, runtime)
    image = jax.ShapeDtypeStruct(spec.input_shape, np.float32)
    if jax.eval_shape(model.encode, params, image).dtype != np.float32:
        raise BadConfig(
            f"--runtime {runtime} computes in {'8 bits' if int8 else 'float32'}; leave out --dtype bfloat16, or "
            "--runtime."
        )
    say(f"encoder of {spec.name} for {runtime}: exported once, then kept ...")
    try:
        file = export_encoder(model, params, to=to, int8=int8, int8_bound=INT8_BOUND)
    except BeyondBound as error:
        raise CannotExport(
            f"The encoder of {spec.name} on {runtime} is off by {error.error:.2g} of its embedding "
            f"({'root mean square' if int8 else 'largest difference'}), more than {error.bound:g}; take "
            f"{f'--runtime {name} or ' if int8 else ''}--runtime jax."
        ) from error
    part = encoder_part(lambda image: model.encode(params, image), spec, 1)
    run = network(file, part_record(part), threads=cores())
    checked = run_directory.read_record(file.with_name(f"{file.name}.json"))
    record = {
        "name": name,
        "version": importlib.metadata.version(package),
        "bits": 8 if int8 else 32,
        "error": checked["outputs"]["embedding"]["relative_rms"],
        "error_is": "root mean square of the embedding's difference from JAX over that of JAX's, synthetic pictures",
        "bound": INT8_BOUND if int8 else FLOAT_BOUND,  # not that of whoever exported the file first
        "encoder_sha256": sha256_of(file),
    }
    words = " ".join([runtime, record["version"], record["encoder_sha256"]])
    return FrozenEncoder(functools.partial(_one, run), record, words, folded)


def cores() -> int:
    """Cores that this process may run on, which is how many threads XLA takes.

    Returns:
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _one(run: Callable[..., list[NDArray]], image: NDArray) -> NDArray[np.float32]:
    return run(np.asarray(image, np.float32)[None])[0][0]


def _merged(adapted: AdaptedModel, params: Params, delta: Delta, runtime: str) -> Params:
    try:
        return adapted.merge(params, delta)
    except NotMergeable as error:
        raise BadConfig(
            f"The adapter is inside the encoder and cannot be folded into its weights ({str(error).rstrip('.')}); "
            f"leave out --runtime {runtime}."
        ) from error
