"""The data of a run: one split by patient, batches to train on, a fixed sample to validate on."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax.data import Dataset, Example, PromptConfig, Split, examples, make_loader, open_dataset, split
from medvfm_jax.data.annotated_labels import described, with_annotated
from medvfm_jax.data.loader import ImageFn, Loader
from medvfm_jax.data.records import Objects
from medvfm_jax.printable import counted
from medvfm_jax.runs.provenance import digest_files
from medvfm_jax.settings.groups import TrainingConfig
from medvfm_jax.train.validation import ValidationSet
from medvfm_jax.types import ModelSpec

_MOST_THREADS = 2
_opened: contextvars.ContextVar[dict[Any, tuple[Dataset, str]] | None] = contextvars.ContextVar(
    "opened", default=None
)


class SplitData(NamedTuple):
    """A dataset and who of it is for what; sha256: over all its files."""

    dataset: Dataset
    split: Split
    sha256: str

    def split_record(self) -> dict[str, list[str]]:
        """The split as JSON can hold it."""
        return {name: list(cases) for name, cases in self.split._asdict().items()}


class TrainingData(NamedTuple):
    """Examples for one model; skipped: {case: why} of unreadable cases that were left out."""

    source: SplitData
    spec: ModelSpec
    task: str
    prompts: PromptConfig | None
    config: TrainingConfig
    train: list[Example]
    val: list[Example]
    skipped: dict[str, str]

    def loader(
        self,
        augment: str,
        share: tuple[int, int] = (0, 1),
        synthesis: float = 0.0,
        image_fn: ImageFn | None = None,
    ) -> Loader:
        """Endless, shuffled; augment: "none", "flips", "upright" or "full"; the others: see ``data.make_loader``."""
        return make_loader(
            self.source.dataset,
            self.train,
            self.spec,
            self.task,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            prompts=self.prompts,
            augment=augment,
            threads=_MOST_THREADS,
            synthesis=synthesis,
            share=share,
            image_fn=image_fn,
        )

    def validation(self) -> ValidationSet:
        """At most ``validation_images`` examples, evenly spaced, in batches; empty without a validation split."""
        if not self.val:
            return ValidationSet((), ())
        size = self.config.batch_size
        count = min(self.config.validation_images, len(self.val))
        chosen = [self.val[i] for i in np.linspace(0, len(self.val) - 1, count).round().astype(int)]
        exact = self.prompts and PromptConfig(self.prompts.kind, self.prompts.count, jitter=0.0, centre=True)
        batches = make_loader(
            self.source.dataset, chosen, self.spec, self.task,
            batch_size=size, seed=self.config.seed, prompts=exact, shuffle=False, epochs=1, threads=0,
        )  # fmt: skip
        names: list[str | None] = [example.case for example in chosen]
        names += [None] * (-len(names) % size)
        cases = [names[i : i + size] for i in range(0, len(names), size)]
        return ValidationSet(tuple(batches), cases)

    def describe(self) -> str:
        """One line for the user."""
        dataset, cut = self.source.dataset, self.source.split
        kind = "image" if dataset.dimension == 2 else "slice"
        if self.spec.rank == 3:
            kind = "window" if self.spec.resize == "none" else "slab"
        train, val = (counted(len(examples), kind) for examples in (self.train, self.val))
        text = (
            f"{dataset.name}: {counted(len(cut.train), 'case')} to train on ({train}), {len(cut.val)} for validation "
            f"({val}), {len(cut.test)} for the test; labels: "
            f"{', '.join(name for name, value in dataset.labels.items() if value)}"
        )
        if dataset.annotated:
            text += f"; {described(dataset.annotated)}"
        return text + (f"; {len(self.skipped)} unreadable cases skipped" if self.skipped else "")


def open_split(
    data: str,
    *,
    seed: int,
    val: float,
    test: float,
    train_cases: int | None = None,
    fold: int | None = None,
    offline: bool = False,
    allow_geometry_mismatch: float = 0.0,
    follow_links: bool = False,
    objects: Objects | None = None,
    given: Mapping[str, Any] | None = None,
    annotated: Sequence[str] = (),
) -> SplitData:
    """Open a dataset and split it by patient, or as ``given`` (the record of an earlier run).

    fold: see ``data.split``.  follow_links, objects: see ``data.open_dataset``.  annotated: see
    ``data.annotated_labels``.
    """
    options: dict[str, Any] = {
        "offline": offline,
        "allow_geometry_mismatch": allow_geometry_mismatch,
        "follow_links": follow_links,
        "objects": objects,
    }
    known, asked = _opened.get(), (data, *options.values(), tuple(annotated))
    if known is not None and asked in known:
        dataset, digest = known[asked]
    else:
        dataset = with_annotated(open_dataset(data, **options), annotated)
        digest = data_digest(dataset)
        if known is not None:
            known[asked] = dataset, digest
    if given is not None:
        for case in [case for part in given.values() for case in part]:
            dataset.case(case)  # says which one is missing
        chosen = Split(**{name: tuple(cases) for name, cases in given.items()})
    else:
        chosen = split(dataset, seed=seed, val=val, test=test, n_train=train_cases, fold=fold)
    return SplitData(dataset, chosen, digest)


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """While this is open, data that are asked for again are those that were opened, with the cases read since."""
    token = _opened.set({})
    try:
        yield
    finally:
        _opened.reset(token)


def data_digest(dataset: Dataset) -> str:
    """Sha256 over the names and contents of all files of a dataset."""
    files: list[Path] = []
    for case in dataset.cases:
        files += [*case.images, *(path for path in (case.label, case.instances) if path is not None)]
    return digest_files(files, dataset.folder)


def training_data(source: SplitData, spec: ModelSpec, prompt: str, config: TrainingConfig) -> TrainingData:
    """List and check every training and validation case; raises BadCase unless ``config.skip_bad``."""
    task = "semantic" if prompt == "none" else "promptable"
    prompts = None if prompt == "none" else PromptConfig(prompt, config.prompts_per_image)
    skipped: dict[str, str] = {}

    def listed(cases: tuple[str, ...], empty: float, random: bool = False) -> list[Example]:
        if not cases:
            return []
        bad = skipped if config.skip_bad else None
        return examples(source.dataset, cases, spec, task, empty=empty, skipped=bad, random=random)

    train = listed(source.split.train, config.empty_slices, random=True)
    val = listed(source.split.val, 1.0)
    return TrainingData(source, spec, task, prompts, config, train, val, skipped)
