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

    A system that tunes every bias, and what it trains of a model:

    >>> import jax
    >>> from medvfm_jax import adapters, models
    >>> from medvfm_jax.systems import System, configure
    >>> biases = System(
    ...     description="every bias tuned (BitFit)",
    ...     source="https://arxiv.org/abs/2106.10199",
    ...     adapter=lambda spec: {"bias": {"kind": "tune", "at": r"(.*/)?bias"}},
    ... )
    >>> model = models.build("lite-tiny-test")
    >>> config = configure("biases", biases, model.spec)
    >>> config["parts"]
    {'bias': {'kind': 'tune', 'at': '(.*/)?bias'}}
    >>> adapted = adapters.adapt_model(adapters.from_config(config), model)
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> delta = jax.eval_shape(adapted.init, jax.random.key(1), params)
    >>> print(adapters.count(delta, params))
    2,548 parameters train, 3.63 % of the model's 70,248; the delta is 10.0 KiB

    Attributes:
        description: one line on what it does, with the authors.
        source: link to the paper.
        adapter: (spec) -> {name of part: JSON-able options with "kind"}, the chain of adapters for a model.
        transform: (spec, prompt, classes) -> configuration for ``models.transforms``, or None: the model is not
            changed.
        prompts: simulated in training where the model takes any and the user does not say.
        objective: task ("promptable", "semantic") -> name of the loss in ``train.task``.
        learning_rate: highest one of AdamW that worked for LiteMedSAM.
        differences: what differs from the publication, or is our interpretation of it; "" if nothing is known.
    """

    description: str
    source: str
    adapter: Callable[[ModelSpec], Parts]
    transform: Callable[[ModelSpec, str, int], dict[str, Any] | None] = prompt_free_on_request
    prompts: Prompt = "box"
    objective: Mapping[str, str] = BY_TASK
    learning_rate: float = 1e-3
    differences: str = ""
