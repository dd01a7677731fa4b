"""What a published system is: a transform of the model, an adapter, and how both are trained."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from medvfm_jax.types import ModelSpec

Parts = dict[str, dict[str, Any]]
Prompt = Literal["none", "box", "point", "mixed"]
BY_TASK: Mapping[str, str] = {"promptable": "medsam", "semantic": "samed"}


def prompt_free_on_request(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any] | None:
    """The transform of most systems: a promptable model trained without prompts gets one output per class.

    Args:
        spec: of the model.
        prompt: simulated in training, "none" for none.
        classes: outputs, background included.

    Returns:
        Configuration for ``models.transforms``, or None: the model is not changed.
    """
    if spec.task == "promptable" and prompt == "none":
        return {"kind": "prompt_free", "classes": classes}
    return None


class System(NamedTuple):
    """A published way to adapt a model, as parts of this library; every part can be overridden in a run.

    Examples:
        The biases of the mask decoder, and LoRA whose rank a run chooses:

        >>> from medvfm_jax.models.catalog import MODELS
        >>> from medvfm_jax.systems import System, configure
        >>> def parts(spec):
        ...     lora = {"kind": "lora", "rank": 4, "alpha": None, "at": "image_encoder/.*/attn/proj"}
        ...     return {"biases": {"kind": "tune", "at": "mask_decoder/.*/bias"}, "lora": lora}
        >>> system = System("LoRA, and biases of the decoder", source="", adapter=parts)
        >>> config = configure("mine", system, MODELS["sam-b"].spec, {"lora.rank": "8"})
        >>> [(part["kind"], part.get("rank")) for part in config["parts"].values()]
        [('tune', None), ('lora', 8)]

    Attributes:
        description: one line on what it does, with the authors.
        source: link to the paper.
        adapter: (spec) -> {name of part: JSON-able options with "kind"}, the chain of adapters for a model.
        transform: (spec, prompt, classes) -> configuration for ``models.transforms``, or None: the model is not
            changed.
        prompts: simulated in training where the model takes any and the user does not say.
        objective: task ("promptable", "semantic") -> name of the loss in ``train.task``.
        learning_rate: highest one of AdamW that worked for LiteMedSAM.
        differences: what differs from the publication, "" if nothing is known; "Interpretation: " stands first where
            it leaves open, or nobody has seen, what it does (``catalog.fidelity_of``).
    """

    description: str
    source: str
    adapter: Callable[[ModelSpec], Parts]
    transform: Callable[[ModelSpec, str, int], dict[str, Any] | None] = prompt_free_on_request
    prompts: Prompt = "box"
    objective: Mapping[str, str] = BY_TASK
    learning_rate: float = 1e-3
    differences: str = ""
