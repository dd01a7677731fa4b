"""What every method that rounds weights and activations does alike: layers seen, operands of attention, checks."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from medvfm_jax.adapters.explicit_sites import pattern_of
from medvfm_jax.adapters.integer_inputs import OPERANDS
from medvfm_jax.adapters.integer_weights import quantised, rounded, stored
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.compress.calibration import Observed
from medvfm_jax.compress.search import operand_step
from medvfm_jax.settings.records import require
from medvfm_jax.types import Delta


class Parts:
    """Parts of an adapter that rounds, filled layer by layer."""

    def __init__(self, weights: Mapping[str, Any], bits: int):
        self.configs: dict[str, Mapping[str, Any]] = {"weights": weights}
        self.delta: Delta = {"weights": {}}
        self.weights_alone = 0  # layers whose inputs were not seen, and stay as they are
        self._bits = bits
        self._inputs: dict[str, Delta] = {}

    def weights(self, path: str, kernel: NDArray, steps: NDArray) -> None:
        """The kernel (..., out) of a layer as integers times the step of each output, (out,)."""
        matrix = kernel.reshape(-1, kernel.shape[-1])
        codes = rounded(matrix, steps, self._bits).astype("int8")
        self.delta["weights"][path] = stored("kernel", codes, steps[None], self._bits)

    def inputs(self, form: str, path: str, arrays: SiteDelta) -> None:
        """How the input of a layer is rounded."""
        self._inputs.setdefault(form, {})[path] = arrays

    def unseen(self, path: str, kernel: NDArray, seen: Observed, candidates: int) -> None:
        """A layer whose products are not looked at: steps with the least squared error of its values."""
        self.weights_alone += path not in seen.others
        self.delta["weights"][path] = stored(
            "kernel", *quantised(kernel, self._bits, 0, candidates), self._bits
        )
        if path in seen.others:
            step = operand_step("symmetric", seen.others[path], self._bits, candidates)
            self.inputs("symmetric", path, {"step": step})

    def attention(
        self, seen: Observed, candidates: int, config: Callable[[str], Mapping[str, Any] | None]
    ) -> int:
        """Operands of attention, config: of a pattern of modules; gives how many modules there are."""
        if seen.operands:
            self.configs["products"] = config(pattern_of(seen.operands))
            self.delta["products"] = {
                path: {
                    name: operand_step(form, values[name], self._bits, candidates)
                    for name, form in OPERANDS.items()
                }
                for path, values in seen.operands.items()
            }
        return len(seen.operands)

    def finish(self, config: Callable[[str, str], Mapping[str, Any] | None]) -> None:
        """Put the inputs in, config: of a pattern of modules and a form."""
        for form, sites in self._inputs.items():
            self.configs[f"inputs_{form}"] = config(pattern_of(sites), form)
            self.delta[f"inputs_{form}"] = sites


def check(**options: tuple[int, int]) -> None:
    """Raise BadConfig for an option (value, least) that is smaller or larger than 10000."""
    for name, (value, least) in options.items():
        require(least <= value <= 10_000, name, value, f"{least} to 10000")
