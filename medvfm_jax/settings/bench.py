"""What `bench` can be asked for."""

from dataclasses import dataclass
from typing import Literal, get_args

from medvfm_jax.types import MedvfmError, ModelSpec

RowName = Literal["encode", "segment", "samed", "decoder", "loader"]
ROW_NAMES: tuple[RowName, ...] = get_args(RowName)
_LARGE = 512  # pixels: of models with larger images only the encoder is timed unless asked
_QUICK_ROUNDS, _QUICK_BATCH = 2, 1


class BadBench(MedvfmError, ValueError):
    """Settings of a benchmark that have no meaning."""


@dataclass(frozen=True)
class BenchConfig:
    """Models, what of them to time, and how often."""

    models: tuple[str, ...] = ("lite-medsam",)
    """Promptable models, with random weights: the time does not depend on them. sam-b takes minutes and 5 GiB."""
    rows: tuple[RowName, ...] = ()
    """What to time: encode (image to embedding), segment (image and box to mask), samed (training step of LoRA and
    decoder), decoder (training step on cached embeddings), loader (batches with augmentation, one thread). By default
    all, and encode alone for models with images above 512 pixels."""
    rounds: int = 7
    """Rounds; in each everything is run once, in rotating order."""
    batch_size: int = 4
    """Images of a training step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    quick: bool = False
    """Two rounds, one image per step, no memory: a look, not a measurement."""
    without_pytorch: bool = False
    """Do not compare with PyTorch, even where it is installed."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadBench."""
        for name in ("rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise BadBench(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.models:
            raise BadBench("There is no model to time; give one or more after --models.")
        for name in ("models", "rows"):
            given = getattr(self, name)
            if twice := [word for word in given if given.count(word) > 1]:
                raise BadBench(f"{twice[0]} is given twice in {name}; once is enough.")

    @property
    def resolved_rounds(self) -> int:
        """Rounds, fewer in a hurry."""
        return min(self.rounds, _QUICK_ROUNDS) if self.quick else self.rounds

    @property
    def resolved_batch(self) -> int:
        """Images of a training step, one in a hurry."""
        return _QUICK_BATCH if self.quick else self.batch_size

    def rows_of(self, spec: ModelSpec) -> tuple[RowName, ...]:
        """The rows to time of a model, in the order of the table."""
        usual = ROW_NAMES if spec.input_size <= _LARGE else ("encode",)
        return tuple(name for name in ROW_NAMES if name in (self.rows or usual))
