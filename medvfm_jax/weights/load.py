"""Load published weights into a model: fetch them, then port the file."""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax import fetch, traces
from medvfm_jax.models import catalog
from medvfm_jax.models.backend import on_host
from medvfm_jax.models.model import Model
from medvfm_jax.types import Params
from medvfm_jax.weights import registry
from medvfm_jax.weights.fitting import port_file
from medvfm_jax.weights.tree import collection, flatten, unflatten

_WHOLE = (".pth", ".pt", ".bin", ".safetensors")  # files that hold all their arrays themselves


def load(
    name: str, file: Path | str | None = None, *, offline: bool = False, seed: int = 0, **options: Any
) -> tuple[Model, Params]:
    """Load a model with its weights.

    Weights are never random, except where there are none by nature: `unet` and the `*-tiny-test` models start from a
    fixed seed, and the decoder of an encoder that was published without one from ``seed``.

    Args:
        name: of published weights, or of a model.
        file: to read instead of the published file: `.pth`, safetensors or ONNX, under the names of the original
            release, of transformers, or our own.
        offline: never touch the network.
        seed: of modules that the published weights lack, see ``ModelEntry.fresh``.
        **options: go to `models.build` (scan_blocks, dtype, image_size).

    Returns:
        (model, params {"params": nested float32 arrays}).

    Raises:
        UnknownWeights: no weights of this name.
        FetchError: they could not be fetched.
        WrongDigest: what was fetched is another file.
        BadCheckpoint: the file is damaged, or no checkpoint.
        UnsafeCheckpoint: a ``.pth`` file asks for more than arrays.
        PortError: keys or shapes do not fit the model.
    """
    model_name = registry.model_of(name)
    model, start = catalog.build(model_name, **options), catalog.MODELS[model_name].start
    plain = {name: value for name, value in options.items() if name != "scan_blocks"}
    stacked = (
        functools.partial(catalog.stack_blocks, name=model_name) if options.get("scan_blocks") else _as_is
    )
    if file is None and start == "random":
        with on_host():
            return model, stacked(jax.jit(catalog.build(model_name, **plain).init)(jax.random.key(0)))
    if file is None and start == "fixed":
        params = stacked(_test_params(catalog.published(model_name, shapes(model_name, **plain))))
        return model, _with_fresh(params, model, model_name, seed)
    if file is None:
        with fetch.bar(name) as progress:
            file = registry.fetch(name, progress, offline=offline)
    params = stacked(_ported(Path(file), model_name, plain))
    return model, _with_fresh(_on_device(params), model, model_name, seed)


def _as_is(params: Params) -> Params:
    return params


def _with_fresh(params: Params, model: Model, name: str, seed: int) -> Params:
    """The parameters with those of the modules that the published weights lack, drawn from a seed."""
    fresh = catalog.MODELS[name].fresh
    if not fresh:
        return params

    @jax.jit  # so that what is published is not drawn as well
    def drawn(key: jax.Array) -> dict[str, Any]:
        return {root: value for root, value in model.init(key)["params"].items() if root in fresh}

    with on_host():
        return {**params, "params": {**params["params"], **drawn(jax.random.key(seed))}}


def kept_words(model: str, sha256: str, options: Mapping[str, Any]) -> list[Any]:
    """Under which ``traces`` keeps the parameters that a file with this digest gives for a model."""
    return ["converted", model, sha256, _said(options)]


def _ported(file: Path, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a file; converted once, then memory-mapped.

    They are known by the digest of the file, never by its name or time, so another file in its place is converted
    itself.  Files that point to others (shards of safetensors, ONNX) are converted each time.
    """
    if file.suffix not in _WHOLE or not file.is_file():
        return port_file(file, catalog.published(model, shapes(model, **options)), _say)
    before = _state(file)
    words = kept_words(model, fetch.sha256_of(file), options)
    kept = traces.arrays(words)
    if kept is not None:
        return kept
    said: list[str] = []
    params = port_file(file, catalog.published(model, shapes(model, **options)), said.append)
    for text in said:  # and again whenever the file is loaded, so its parameters are not kept
        _say(text)
    if _state(file) == before and not said:  # it was not written to between the digest and the reading
        traces.keep_arrays(words, params)
    return params


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def shapes(name: str, **options: Any) -> dict[str, Any]:
    """Name of a model -> the shapes of its parameters; traced once, see ``traces``.  Raises UnknownModel."""

    def traced() -> dict[str, Any]:
        return jax.eval_shape(catalog.build(name, **options).init, jax.random.key(0))

    return traces.shapes(["parameters", name, _said(options)], traced)


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(jnp.dtype(value)) if key == "dtype" else value for key, value in options.items()}


def _on_device(params: dict[str, Any]) -> Params:
    """Numpy -> JAX one array at a time, so that there are never two copies of a model."""
    flat = flatten(params)
    params.clear()
    return unflatten({path: jax.device_put(flat.pop(path)) for path in list(flat)})


def _test_params(shapes: Mapping[str, Any]) -> Params:
    """Fixed random numbers of sensible size for the test models, without compiling their initialisation."""
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in flatten(collection(shapes)).items():
        name = path.rsplit("/", 1)[-1]
        if name in ("scale", "var", "gamma"):
            value = np.ones(leaf.shape)
        elif name in ("bias", "mean"):
            value = np.zeros(leaf.shape)
        else:
            value = rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        flat[path] = jnp.asarray(value, jnp.float32)
    return {"params": unflatten(flat)}
