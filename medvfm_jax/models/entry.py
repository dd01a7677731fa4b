"""What the package knows of a model before it is built."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from medvfm_jax.models.model import Model
from medvfm_jax.port_tables import PortTable
from medvfm_jax.types import ModelSpec


class ModelEntry(NamedTuple):
    """A model of the catalog; nothing here needs a trace or a weight.

    family: name of its folder, or of a variant in it: tiny_vit_sam, efficient_sam, rep_vit_sam.
    spec: at the image size the weights were trained for.
    build(**options) -> Model; options: the names it takes.
    tables: port tables that read its checkpoints, that of the original release first.
    start: weights are "published", "random" (trained from scratch), or "fixed" numbers of a test model.
    heads: of a block of the image encoder, 1 where blocks cannot be divided by heads.
    group: blocks of a kind that ``scan_blocks`` stacks together.
    whole_batches: a CPU is faster with a whole batch than with one image after the other.
    fresh: modules at the root of the parameters that the published weights lack; they start from the run's seed.
    localiser: name of the model that finds the part of a volume which this one sees, stretched to its window; "" for
        none.
    preparation: record of what was done to the volumes that the published weights saw, see
        ``images.preparation.of_record``; None for nothing.
    source: link to the paper.
    differences: what differs from it; "" if nothing is known. See ``catalog.fidelity_of``.
    """

    family: str
    spec: ModelSpec
    build: Callable[..., Model]
    options: tuple[str, ...]
    tables: tuple[PortTable, ...] = ()
    start: Literal["published", "random", "fixed"] = "published"
    heads: int = 1
    group: int = 1
    whole_batches: bool = False
    fresh: tuple[str, ...] = ()
    localiser: str = ""
    preparation: Mapping[str, Any] | None = None
    source: str = ""
    differences: str = ""

    @property
    def complete(self) -> bool:
        """Whether it gives masks of classes as its weights are published, without a delta."""
        return self.spec.task == "semantic" and self.start != "random" and not self.fresh

    @property
    def description(self) -> str:
        """Family, input size, task and licence in one line."""
        spec = self.spec
        return f"{self.family}, {spec.size} px, {spec.task}, {spec.licence}"
