"""Settings of `analyze curvature`."""

import dataclasses
from pathlib import Path
from typing import Literal

from medvfm_jax.settings.analyze.adapter import AdapterConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class CurvatureConfig(AdapterConfig):
    """How curved the loss is in what is trained: largest eigenvalues, trace and spectral density."""

    _: dataclasses.KW_ONLY
    data: str | None = None
    """Folder with labelled images, or name of a built-in dataset; by default that of --run."""
    run: Path | None = None
    """Run directory of `adapt`: its data, model and adapter, at its trained delta instead of the start."""
    adapter: str = "lora"
    """System whose delta is looked at, without a run."""
    product: Literal["hessian", "gauss_newton"] = "hessian"
    """`hessian`, or `gauss_newton`, which leaves out the curvature of the model and is not negative where the loss is
    convex in the logits."""
    probes: int = 2
    """Vectors of random signs; two or more give the trace an error."""
    iterations: int = 8
    """Products of each probe and image; more find more eigenvalues."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.probes >= 1, "probes", self.probes, "at least 1")
        require(self.iterations >= 2, "iterations", self.iterations, "at least 2")
        if self.run is None and self.data is None:
            raise BadConfig("Curvature needs --run RUN, or --data FOLDER with --model and --adapter.")
        if self.run is not None:
            usual = {field.name: field.default for field in dataclasses.fields(self)}
            for name in ("model", "adapter", "set", "prompt"):
                if getattr(self, name) != usual[name]:
                    raise BadConfig(f"{name} is that of the run {self.run}; leave out --{name}, or --run.")
