"""Whether a system fits a model and a rank, from shapes alone, and in words where it does not."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from medvfm_jax.adapters import BadAdapterConfig, NoSuchSite, WrongSite, adapt_model, count, from_config
from medvfm_jax.adapters.sites import Site, remembering
from medvfm_jax.adapters.training_options import check_ranks
from medvfm_jax.models.context.errors import MapTooSmall
from medvfm_jax.models.model import Model
from medvfm_jax.models.transforms import seeded, transform
from medvfm_jax.systems import lora_sam, med_sa_whole, places, samed_s, student
from medvfm_jax.systems.catalog import SYSTEMS
from medvfm_jax.systems.configuration import configure
from medvfm_jax.systems.features import for_features
from medvfm_jax.systems.record import System
from medvfm_jax.types import MedvfmError, Params

# What the patterns of systems stand for; a user's own pattern is shown verbatim.
_WORDS = {
    places.DECODER: "mask decoder",
    places.DECODER_AND_PROMPT_ENCODER: "mask decoder or prompt encoder",
    places.DECODER_QV: "transformer in its mask decoder",
    places.LAST_LINEAR: "linear layer before the masks that it knows",
    places.QKV: "attention with q, k and v in one layer",
    places.ATTENTION: "attention in its image encoder",
    places.MLP: "MLP in its image encoder",
    places.ATTENTION_AND_MLP: "attention or an MLP in its image encoder",
    places.LINEAR_AND_NORM: "transformer blocks in its image encoder",
    places.VIT_BLOCK: "transformer blocks that it knows",
    places.LEVELS: "stages or blocks that it knows in its image encoder",
    places.NORM: "layer norm",
    places.UPSCALED: "map that a mask decoder enlarges",
    places.SECOND_DECODER: "second decoder (a SAM without prompts gets it: --prompt none)",
    places.MASK_BRANCH: "branch that draws masks (a SAM with prompts gets it: --prompt box)",
    places.PREDICTOR: "network that predicts prompts (a SAM without prompts gets it: --prompt none)",
    "image_encoder": "image encoder",
    samed_s.OUTSIDE_TRANSFORMER: "mask decoder or prompt encoder",
    lora_sam.OUTPUTS: "mask tokens with hypernetworks",
    f"{med_sa_whole.BLOCK}/cross_attn_token_to_image": "transformer in its mask decoder",
    f"{med_sa_whole.BLOCK}/cross_attn_image_to_token": "transformer in its mask decoder",
    f"{med_sa_whole.BLOCK}/mlp": "transformer in its mask decoder",
    "mask_decoder/(transformer|iou_token|mask_tokens|iou_prediction_head)/.*": "mask decoder with a transformer",
    r"image_encoder/(.*/)?stream": "image encoder that MA-SAM knows",
    "image_encoder/blocks_0": "first block of a plain transformer in its image encoder",
    r"image_encoder/(.*/)?local_conv": "image encoder that MA-SAM knows",
    r"image_encoder/layers_[1-9]\d*/blocks_\d+": "image encoder that MA-SAM knows",
    r"image_encoder/(blocks_\d+/\w+_adapter|cnn_embed|input_adapter|post_pos_embed)/.*": "branch of convolutions",
    r"image_encoder/blocks_\d+/attn/rel_pos_[hw]": "relative positions in its image encoder",
    r"image_encoder/(blocks_\d+/norm[12]|neck_[0-3])/.*": "transformer with a neck as its image encoder",
    "image_encoder/patch_embed": "layer that embeds patches in its image encoder",
    r"image_encoder/blocks_\d*[02468]/attn": "plain transformer with attention as its image encoder",
    r"image_encoder/blocks_\d*[13579]/attn": "plain transformer with attention as its image encoder",
    ".*": "parameter",
    student.EVERYTHING: "parameter",
    "(.*/)?bias": "bias",
}


class Fit(NamedTuple):
    """trained: parameters of the system on the model, None where it does not fit; reason: why, "" where it does."""

    trained: int | None
    reason: str = ""


def fit(name: str, model: Model, params: Params, rank: int | None = None) -> Fit:
    """Try a system on a model.

    Args:
        name: of the system.
        model: to adapt.
        params: shapes of its parameters, see ``jax.eval_shape(model.init, key)``.
        rank: of every part that has one; None: the system's own.

    Returns:
        What would train, or one sentence on why it does not fit.
    """
    return next(fits([name], model, params, rank))


def fits(names: Iterable[str], model: Model, params: Params, rank: int | None = None) -> Iterator[Fit]:
    """Try several systems on a model, which is traced once for all that see it alike.

    Args:
        names: of the systems.
        model: to adapt.
        params: shapes of its parameters.
        rank: as in ``fit``.

    Yields:
        What ``fit`` gives for each.
    """
    grown: dict[str, tuple[Model, Params]] = {}
    sites: dict[Any, dict[str, Site]] = {}
    for name in names:
        system = for_features(SYSTEMS[name]) if model.spec.task == "features" else SYSTEMS[name]
        try:
            change = json.dumps(system.transform(model.spec, system.prompts, 2), sort_keys=True)
            if change not in grown:
                grown[change] = as_trained(system, model, params, always=True)
        except MedvfmError as error:
            yield Fit(None, why(error))
            continue
        with remembering(sites):
            found = _fit(name, system, *grown[change], rank)
        yield found


def _fit(name: str, system: System, model: Model, params: Params, rank: int | None) -> Fit:
    own = system.adapter(model.spec)
    ranked = {f"{part}.rank": rank for part, options in own.items() if rank is not None and "rank" in options}
    try:
        adapted = adapt_model(from_config(configure(name, system, model.spec, ranked)), model)
        delta = jax.eval_shape(adapted.init, jax.random.key(0), params)
        check_ranks(adapted.adapter.config, delta)
    except (BadAdapterConfig, MapTooSmall, NoSuchSite, WrongSite) as error:
        return Fit(None, why(error))
    return Fit(count(delta, params).trained)


def as_trained(system: System, model: Model, params: Params, *, always: bool = False) -> tuple[Model, Params]:
    """The model with the modules that the system adds, for two classes; itself where it adds none.

    Args:
        system: to be tried.
        model: to adapt.
        params: of it, arrays or shapes.
        always: also where the system only takes modules away, as those without prompts do.

    Returns:
        (model, shapes of its parameters).

    Raises:
        MedvfmError: a model that the system's transform does not take.
    """
    plain = system.transform(model.spec, system.prompts, 2)
    change = seeded(plain, 0)
    if change is None or (change == plain and model.spec.task != "features" and not always):
        return model, params
    found: list[Model] = []

    def traced(params: Params) -> Params:
        changed, params = transform(change, model, params)
        found.append(changed)
        return params

    params = jax.eval_shape(traced, params)
    return found[0], params


def why(error: Exception) -> str:
    """The sentence of an error, with words where the pattern of a system matched nothing.

    Args:
        error: a NoSuchSite, a WrongSite, a BadAdapterConfig or a MapTooSmall.

    Returns:
        One sentence.
    """
    text = str(error)
    for pattern, words in _WORDS.items():
        if text.startswith(f"'{pattern}' matches no "):
            return f"the model has no {words}."
    return text
