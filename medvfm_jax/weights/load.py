"""Load published weights into a model: fetch, read, recognise, port, strictly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax import fetch
from medvfm_jax.models import catalog, scan
from medvfm_jax.models.model import Model
from medvfm_jax.types import Params
from medvfm_jax.weights import registry
from medvfm_jax.weights.port import PortError, check, to_jax
from medvfm_jax.weights.read import OWN_FORMAT, read_state
from medvfm_jax.weights.tables import TABLES, choose
from medvfm_jax.weights.tree import collection, flatten, unflatten

UNTRAINED = ("unet",)  # trained from scratch by nature
TEST_SUFFIX = "-tiny-test"
FAMILIES = {table.name: tuple(catalog.VIT_VARIANTS) for table in TABLES} | {
    "sam": tuple(catalog.SAM_ENCODERS),
    "hf_sam": tuple(catalog.SAM_ENCODERS),
    "tiny_vit_sam": tuple(catalog.TINY_VITS),
}


def load(
    name: str, file: Path | str | None = None, *, offline: bool = False, **options: Any
) -> tuple[Model, Params]:
    """Name -> (Model, params {"params": nested float32 arrays}).

    `file` is read instead of the published file: `.pth`, safetensors or ONNX, under the names of the original
    release, of transformers, or our own.  `options` go to `models.catalog.build` (scan_blocks, dtype,
    image_size).  Weights are never random, except where there are none by nature: `unet` and the `*-tiny-test`
    models start from a fixed seed.
    Raises UnknownWeights, FetchError, WrongDigest, BadCheckpoint, UnsafeCheckpoint, PortError.
    """
    model_name = registry.model_of(name)
    model = catalog.build(model_name, **options)
    if file is None and name in UNTRAINED:
        return model, jax.jit(model.init)(jax.random.key(0))
    if file is None and name.endswith(TEST_SUFFIX):
        return model, _test_params(jax.eval_shape(model.init, jax.random.key(0)))
    if file is None:
        with fetch.bar(name) as progress:
            file = registry.fetch(name, progress, offline=offline)
    plain = catalog.build(model_name, **{k: v for k, v in options.items() if k != "scan_blocks"})
    params = port_file(file, jax.eval_shape(plain.init, jax.random.key(0)))
    if options.get("scan_blocks"):
        stacked = jax.eval_shape(model.init, jax.random.key(0))["params"]["image_encoder"]["blocks"]
        params = scan.stack(params, group=len(stacked))
    return model, _on_device(params)


def _on_device(params: dict[str, Any]) -> Params:
    """Numpy -> JAX one array at a time, so that there are never two copies of a model."""
    flat = flatten(params)
    params.clear()
    return unflatten({path: jnp.asarray(flat.pop(path)) for path in list(flat)})


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


def port_file(file: Path | str, target_shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Any readable checkpoint -> {"params": nested float32 numpy arrays} of the target shapes.

    The family is told from the keys.  Raises BadCheckpoint, UnsafeCheckpoint, PortError.
    """
    state, metadata = read_state(file)
    if metadata.get("format") == OWN_FORMAT:
        return _own(
            state, target_shapes, f"{file} (parameters of {metadata.get('model', 'an unnamed model')})"
        )
    return to_jax(choose(state), state, target_shapes, where=str(file), consume=True)


def fitting_models(file: Path | str) -> tuple[list[str], PortError | None]:
    """Checkpoint -> (names of all catalogue models it fits exactly, the mismatch with the nearest if none).

    Raises BadCheckpoint, UnsafeCheckpoint.
    """
    fits, nearest = [], None
    state, metadata = read_state(file)
    own = metadata.get("format") == OWN_FORMAT
    table = choose(state)
    written_for = metadata.get("model")  # our own files say it; then its relatives are all that can fit
    related = (
        [names for names in FAMILIES.values() if written_for in names] if own else [FAMILIES[table.name]]
    )
    for name in related[0] if related else catalog.names():
        if name in UNTRAINED:
            continue
        targets = jax.eval_shape(catalog.build(name).init, jax.random.key(0))
        try:
            if own:
                _own(state, targets, str(file))
            else:
                check(table, state, targets, where=f"{file} as {name}")
        except PortError as error:
            if nearest is None or _distance(error) < _distance(nearest):
                nearest = error
        else:
            fits.append(name)
    return fits, None if fits else nearest


def _distance(error: PortError) -> int:
    return len(error.unused_sources) + len(error.missing_targets) + len(error.problems)


def _own(state: Mapping[str, np.ndarray], target_shapes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameters under our own paths, as `medvfm weights convert` writes them."""
    targets = flatten(collection(target_shapes))
    problems = [
        f"{path} has shape {state[path].shape}, the model's is {targets[path].shape}"
        for path in targets.keys() & state.keys()
        if state[path].shape != targets[path].shape
    ]
    unused, missing = sorted(state.keys() - targets.keys()), sorted(targets.keys() - state.keys())
    if unused or missing or problems:
        raise PortError(where, unused, missing, problems)
    return {"params": unflatten({path: np.asarray(state[path], np.float32) for path in targets})}
