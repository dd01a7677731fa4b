"""What `segment` computes with: loaded, or, for published weights without a delta, kept from an earlier call.

Building a model imports Linen and every adapter, and is needed only where its program has to be compiled.  So what a
``Segmenter`` must know of a model is kept beside the program (see ``traces``), and the weights are memory-mapped.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from medvfm_jax import traces
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation, of_record
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import Delta, ModelSpec, Params

if TYPE_CHECKING:
    from medvfm_jax.adapters import AdaptedModel
    from medvfm_jax.train.stored_delta import Loaded


class Ready(NamedTuple):
    """A model with its delta, on the device.

    delta: {} for a pretrained model without one, and then metadata is None.  note: what could not be checked about it.
    words: what the computation follows from, see ``traces``.  adapted: builds the model, where it must be traced.
    preparation: of volumes before the model sees them.
    """

    spec: ModelSpec
    params: Params
    delta: Delta
    metadata: Mapping[str, Any] | None
    note: str
    words: tuple[Any, ...]
    adapted: "Callable[[], AdaptedModel]"
    preparation: Preparation = AS_THEY_ARE


def ready(loaded: "Loaded") -> Ready:
    """What has been loaded, for a ``Segmenter``."""
    base = loaded.base
    return Ready(
        base.model.spec,
        base.params,
        loaded.delta,
        loaded.metadata,
        loaded.note,
        loaded.words,
        lambda: loaded.adapted,
        loaded.preparation,
    )


def without_delta(model: str, *, dtype: str, file: Path | None, offline: bool) -> Ready:
    """A pretrained model without a delta.  Raises BadConfig if it gives no masks, and what ``load_base`` raises."""
    found = _kept(model, dtype) if file is None else None
    if found is not None:
        return found
    loaded = loaded_alone(model, dtype, file, offline)
    if file is None:
        _keep(model, dtype, loaded.base.model.spec)
    return ready(loaded)


def loaded_alone(
    model: str, dtype: str, file: Path | None, offline: bool, *, memory: bool = False
) -> "Loaded":
    """A model without a delta.  memory: with what follows objects through a volume.  Raises as ``without_delta``."""
    from medvfm_jax.train.base_model import entry_of, load_base, spec_of, with_adapter
    from medvfm_jax.train.stored_delta import Loaded

    if not entry_of(model).complete and spec_of(model).task != "promptable":
        raise BadConfig(f"{model} without a delta gives no masks; adapt it first and give its --run.")
    if entry_of(model).start == "random" and file is None:
        raise BadConfig(
            f"{model} starts from random weights; train it first and give its --run, or give --weights."
        )
    base = load_base(model, classes=2, seed=0, dtype=dtype, file=file, offline=offline, memory=memory)
    words = (model, dtype, "memory") if memory else (model, dtype)
    preparation = of_record(entry_of(model).preparation)
    return Loaded(base, with_adapter(base, None), {}, None, words=words, preparation=preparation)


def _words(model: str, dtype: str) -> list[str]:
    return ["as it is", model, dtype]


def _keep(model: str, dtype: str, spec: ModelSpec) -> None:
    """Keep what ``_kept`` needs, for weights whose digest the package knows."""
    from medvfm_jax.train.base_model import entry_of, options_of
    from medvfm_jax.weights import registry
    from medvfm_jax.weights.load import kept_words

    entry = registry.WEIGHTS.get(model)
    if entry is None or entry.sha256 is None:
        return
    file = registry.cached_path(entry)
    words = kept_words(entry.model, entry.sha256, options_of(dtype))
    said = {"spec": asdict(spec), "file": str(file), "size": file.stat().st_size, "parameters": words}
    said["preparation"] = entry_of(model).preparation
    traces.keep_facts(_words(model, dtype), said)


def _kept(model: str, dtype: str) -> Ready | None:
    """The model as it was kept, if the file with its weights is still where it was.

    The file itself is not read: the kept parameters are known by the digest that the package has recorded for it, and
    each of their bytes is checked against a digest of their own.
    """
    said = traces.facts(_words(model, dtype))
    if said is None:
        return None
    try:
        if Path(said["file"]).stat().st_size != said["size"]:
            return None
    except OSError:
        return None
    params = traces.arrays(said["parameters"])
    if params is None:
        return None
    facts = {name: tuple(v) if isinstance(v, list) else v for name, v in said["spec"].items()}
    return Ready(
        ModelSpec(**facts),
        jax.device_put(params),
        {},
        None,
        "",
        (model, dtype),
        lambda: _adapted_within_a_trace(model, dtype),
        of_record(said.get("preparation")),
    )


def _adapted_within_a_trace(model: str, dtype: str) -> "AdaptedModel":
    """The model whose weights were kept, where a program of it that was not kept is being traced.

    Loading computes with numbers (a fingerprint of the weights), which within a trace are none unless one says so.
    """
    with jax.ensure_compile_time_eval():
        return loaded_alone(model, dtype, None, True).adapted
