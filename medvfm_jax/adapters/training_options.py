"""What an adapter's configuration says about how it is trained: randomness, and learning rates of single arrays."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from medvfm_jax.adapters.delta_paths import is_fixed
from medvfm_jax.adapters.errors import WrongSite
from medvfm_jax.adapters.parameter_paths import leaves_by_path
from medvfm_jax.types import Delta

_WITH_CONSTANTS = ("pissa", "lora_ga")
_FACTOR = ("a", "b", "u", "v")  # names of arrays with one axis of rank and one of features


def is_random(config: Mapping[str, Any] | None) -> bool:
    """Say whether a training step of the adapter draws numbers, so that ``apply`` needs ``rngs={"dropout": key}``.

    Args:
        config: of the adapter, None for a custom one.

    Returns:
        True where a part has dropout, or chooses among experts with noise.
    """
    return any(part.get("dropout", 0) or part.get("top_k") is not None for _, part in parts_of(config))


def rate_of(config: Mapping[str, Any] | None) -> Callable[[tuple[str, ...]], float] | None:
    """How fast every array of a delta learns, as a multiple of the learning rate.

    Args:
        config: of the adapter, None for a custom one.

    Returns:
        (keys of the array in the delta) -> multiple: ``b_rate`` for the second factors of a part that has it (LoRA+),
        0 for constants; None where every array has 1.
    """
    rates = {
        chain: part.get("b_rate", 1.0)
        for chain, part in parts_of(config)
        if part.get("b_rate", 1.0) != 1.0 or part["kind"] in _WITH_CONSTANTS
    }
    if not rates:
        return None

    def rate(keys: tuple[str, ...]) -> float:
        if is_fixed(keys[-1]):
            return 0.0
        return rates.get(keys[:-2], 1.0) if keys[-1].split("_")[0] == "b" else 1.0

    return rate


def check_ranks(config: Mapping[str, Any] | None, delta: Delta) -> None:
    """Refuse ranks larger than a layer: such a pair of factors is a full matrix with more numbers.

    Args:
        config: of the adapter, None for a custom one.
        delta: its arrays or their shapes.

    Raises:
        WrongSite: naming the layer, its width and the option to change.
    """
    for chain, part in parts_of(config):
        rank, tree = part.get("rank"), delta
        for name in chain:
            tree = tree[name]
        if rank is None:
            continue
        for path, name, array in leaves_by_path(tree):
            if name.removeprefix("fixed_").split("_")[0] not in _FACTOR or rank not in array.shape[-2:]:
                continue
            width = array.shape[-2] if array.shape[-1] == rank else array.shape[-1]
            if width < rank:
                option = ".".join((*chain, "rank"))
                raise WrongSite(
                    f"a rank of {rank} is larger than the layer '{path}', which is {width} wide: choose "
                    f"{option}={width} or less."
                )


def parts_of(config: Mapping[str, Any] | None) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Take chains apart.

    Args:
        config: of an adapter, None for a custom one.

    Yields:
        (names of the chain's parts that lead to it, configuration) of every part that is no chain.
    """
    if config is None:
        return
    if config.get("kind") != "chain":
        yield (), config
        return
    for name, part in config["parts"].items():
        for chain, inner in parts_of(part):
            yield (name, *chain), inner
