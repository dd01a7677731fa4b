"""What `export` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from medvfm_jax.settings.records import BadConfig, Settings, require

FormatName = Literal["stablehlo", "onnx", "litert"]
INT8_BOUND = 0.1  # share of an output's root mean square that 8-bit files may be off


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """Write a model as files that other runtimes read, checked against JAX."""

    run: Path | None = None
    """Run directory whose model is written, adapted; it knows its base weights."""
    _: dataclasses.KW_ONLY
    model: str | None = None
    """Published model to write, or the base of --delta."""
    delta: Path | None = None
    """Delta (safetensors) to write with the model it was made for."""
    weights: Path | None = None
    """File with the base weights, if they are not fetched automatically; a run knows its own."""
    to: FormatName = "onnx"
    """stablehlo: for JAX and compilers of OpenXLA; onnx: ONNX Runtime, OpenVINO, viewers; litert: LiteRT (TFLite)."""
    out: Path = Path("exported")
    """Folder to create; it appears when everything in it has been checked."""
    batch: int = 1
    """Images that are encoded at once."""
    prompts: int = 4
    """Objects that are asked about at once."""
    slots: int | None = None
    """Points of an object, both corners of a box included, or one more than clicks; by default 2 for models of boxes
    alone, 8 for others."""
    dynamic: bool = False
    """Leave the numbers of images and objects open, in place of --batch and --prompts; not with litert."""
    multimask: bool = False
    """Three masks per object, of which the best rated one is taken; by default one."""
    int8: bool = False
    """Also files with 8-bit weights, whose error is measured and bounded; onnx and litert."""
    int8_bound: float = INT8_BOUND
    """Largest error of these, as a share of the root mean square of what JAX gives."""
    unmerged: bool = False
    """Keep the adapter beside the weights instead of folding it in; the only way for adapters that cannot be merged."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        for name in ("batch", "prompts"):
            require(1 <= getattr(self, name) <= 1024, name, getattr(self, name), "1 to 1024")
        slots = self.slots
        require(
            slots is None or 2 <= slots <= 1024,
            "slots",
            slots,
            "2 to 1024: a box, or a click and its padding",
        )
        require(0 < self.int8_bound < math.inf, "int8_bound", self.int8_bound, "a number above 0")
        if self.run is not None and (self.delta is not None or self.model is not None):
            raise BadConfig("A run knows its model and its delta: leave out --model and --delta, or RUN.")
        if self.run is None and self.delta is None and self.model is None:
            raise BadConfig("There is nothing to export: give RUN, --delta FILE or --model NAME.")
        if self.dynamic and self.to == "litert":
            raise BadConfig(
                "LiteRT files have fixed sizes; leave out --dynamic, or use --to onnx or stablehlo."
            )
        if self.int8 and self.to == "stablehlo":
            raise BadConfig(
                "There are no 8-bit files of StableHLO; leave out --int8, or use --to onnx or litert."
            )
        if self.unmerged and self.run is None and self.delta is None:
            raise BadConfig("A published model has no adapter to keep apart; leave out --unmerged.")
