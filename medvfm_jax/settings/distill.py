"""What `distill` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from medvfm_jax.local_paths import URL
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import DataConfig, OptimConfig, PromptChoice, ReadingConfig, RunConfig
from medvfm_jax.settings.records import BadConfig, require


@dataclasses.dataclass(frozen=True)
class DistillConfig(ReadingConfig, RunConfig, OptimConfig, DataConfig):
    """Teach a small network what a large one knows."""

    _: dataclasses.KW_ONLY
    teacher: str = "lite-medsam"
    """Model to learn from, or the run directory of one that was adapted (or distilled: an assistant)."""
    teacher_weights: Path | None = None
    """File with the teacher's base weights, if they are not fetched automatically."""
    student: str = "lite-medsam-s"
    """Network that learns; it starts with the teacher's numbers of the same names, cut to its size."""
    recipe: str = "task"
    """mobile_sam, tiny_sam, edge_sam, efficient_vit_sam, sam_lightening, sami, dear_kd, task, emkd, mean_teacher,
    mutual; plain learns from labels alone, to compare with."""
    set: tuple[str, ...] = ()
    """Option of the recipe, for example rounds=1, or the weight of any term, for example pkd=1; may be given several
    times."""
    partner: str = ""
    """Network that learns beside the student with --recipe mutual and is left behind; by default one like the student
    whose encoder starts at random."""
    start: Literal["teacher", "random"] = "teacher"
    """Numbers of the encoder that the student starts with; decoder and prompts are the teacher's where they fit."""
    prompt: PromptChoice = "auto"
    """Prompts simulated from the labels; `none` for a teacher with one output per label. `auto`: the teacher's."""
    prompts_per_image: int = 4
    """Prompts per image and step, sampled from its labels or instances."""
    objective: Literal["auto", "medsam", "samed", "sam"] = "auto"
    """Loss on the labels, where the recipe looks at them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters stay float32."""
    steps: int = 400
    """Optimiser steps."""
    accumulate: int | None = None
    """Parts a batch is cut into to save memory; the gradient is the same. By default one image at a time on CPU."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    train_cases: int | None = None
    """Learn from the images of this many patients only; validation and test stay the same."""
    learning_rate: float | None = None
    """Highest learning rate; by default 0.001."""
    tensorboard: bool = False
    """Write scalars for TensorBoard too, into --out/tensorboard."""
    wandb: str | None = None
    """Project of Weights & Biases that is sent the numbers of metrics.jsonl too; no paths, cases or pictures."""
    mlflow: str | None = dataclasses.field(default=None, metadata={URL: True})
    """Address of an MLflow server that is sent the numbers of metrics.jsonl too, such as http://host:5000."""
    mirror: str | None = dataclasses.field(default=None, metadata={URL: True})
    """URL of a folder of its own, such as gs://bucket/run, to which the run directory is copied in the background after
    each checkpoint and at the end; with --resume and an empty --out the run is brought from there. May change when a
    run is resumed."""
    out: Path = Path("runs/distill")
    """Run directory to create."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(bool(self.teacher), "teacher", self.teacher, "a model or a run directory")
        if self.embeddings == "device":
            raise BadConfig(
                "distill holds no embeddings on the device, only adapt and federate do; choose --embeddings memory or "
                "disk."
            )
        if self.embeddings in ("memory", "disk") and self.augment != "none":
            raise BadConfig(
                "A teacher's embeddings are kept where pictures come without random changes: add --augment none, or "
                f"leave out --embeddings {self.embeddings}."
            )
        self.of_student("box")  # checks the rest

    def of_student(self, prompt: PromptChoice, image_size: int | None = None) -> AdaptConfig:
        """The student's run as `adapt` knows it, which `evaluate` and `segment` read.

        prompt: what "auto" stands for.  image_size: of the teacher's run, None where it has the model's own.
        """
        own = {"teacher", "teacher_weights", "student", "recipe", "set", "start", "partner"}
        shared: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in own
        }
        shared["prompt"] = prompt if self.prompt == "auto" else self.prompt
        shared["learning_rate"] = self.learning_rate or LEARNING_RATE
        return AdaptConfig(**shared, model=self.student, adapter="student", image_size=image_size)


LEARNING_RATE = 1e-3
