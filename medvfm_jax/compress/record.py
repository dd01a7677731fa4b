"""What a method of compression is: parts of an adapter, and the numbers in them, in place of a model's own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medvfm_jax.adapters import AdaptedModel, BadAdapterConfig, adapt_model, from_config
from medvfm_jax.adapters.option_values import typed
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.models.model import Model
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import Delta, Params

REST = "rest"  # the part with the parameters that a method leaves as they are


class Compressed(NamedTuple):
    """A compressed model; it runs without any of the model's own parameters.

    Attributes:
        parts: part of an adapter -> its configuration, ``adapters.from_config`` reads it.
        delta: part -> its arrays.
        facts: what was chosen, for the record and the display.
    """

    parts: Mapping[str, Mapping[str, Any]]
    delta: Delta
    facts: Mapping[str, Any]

    @property
    def adapter(self) -> dict[str, Any]:
        """Configuration of all parts as one adapter."""
        return {"kind": "chain", "parts": {name: dict(part) for name, part in self.parts.items()}}


def applied(compressed: Compressed, model: Model) -> AdaptedModel:
    """The compressed model: ``apply(params, delta, image, prompts)``, where ``params`` are shapes that nobody reads.

    Args:
        compressed: parts and numbers.
        model: as it was before.

    Returns:
        A model that takes ``compressed.delta``.
    """
    return adapt_model(from_config(compressed.adapter), model)


class ParamTransform(NamedTuple):
    """A published way to make a trained model smaller or cheaper without training it.

    Attributes:
        description: one line on what it does, with the authors.
        source: link to the paper.
        init: (subject, calibration, **options) -> Compressed, without the part ``REST``; its keyword arguments are
            what can be set with ``--set``. Where modules lie is in regular expressions of paths, as in adapters.
        apply: (Compressed, Model) -> the compressed model.
        differences: what differs from the publication, "" if nothing is known; "Interpretation: " stands first where
            it leaves open what it does (``catalog.fidelity_of``).
    """

    description: str
    source: str
    init: Callable[..., Compressed]
    apply: Callable[[Compressed, Model], AdaptedModel] = applied
    differences: str = ""

    def options(self) -> dict[str, Any]:
        """Option -> default."""
        found = inspect.signature(self.init).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}

    def configured(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Options that were given as text, as values.

        Raises:
            BadConfig: an option that the method does not have, or a value of another type.
        """
        unknown = [name for name in given if name not in self.options()]
        if unknown:
            raise BadConfig(
                f"This method has no option '{unknown[0]}'{did_you_mean(unknown[0], self.options())}."
            )
        hints = inspect.signature(self.init).parameters
        try:
            return {name: typed(value, hints[name].annotation, name) for name, value in given.items()}
        except BadAdapterConfig as error:
            raise BadConfig(str(error)) from error


class Subject(NamedTuple):
    """A model to be compressed.

    Attributes:
        name: of its base model.
        model: its functions.
        params: its parameters as numpy arrays.
    """

    name: str
    model: Model
    params: Params
