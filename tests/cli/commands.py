"""Words of small commands, what a command gave back, and what it left behind."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from medvfm_jax import systems
from medvfm_jax.train import base_model
from medvfm_jax.weights import artifacts

SAM, LITE = "sam-tiny-test", "lite-tiny-test"
# The cheapest training there is; see tests/train/conftest.py.
SMALL = {
    "model": SAM, "adapter": "linear", "prompt": "box", "steps": 2, "batch_size": 2, "prompts_per_image": 2,
    "val_fraction": 0.2, "test_fraction": 0.2, "validate_every": 0,
}  # fmt: skip


class Result(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one JSON object that is all of stdout."""
        assert self.code == 0, self
        assert self.out.count("\n") == 1
        record = json.loads(self.out)
        assert isinstance(record, dict)
        return record

    def refused(self, *words: str, code: int | None = None) -> str:
        """The one sentence of a command that failed, after notes if any; it must hold the words."""
        assert self.code in ((1, 2) if code is None else (code,)), self
        assert self.out == "", self
        *before, sentence = self.err.splitlines()
        assert all(line.startswith("note: ") for line in before), self
        assert sentence.startswith("medvfm: "), self
        assert "Traceback" not in self.err
        assert "unexpected" not in self.err, self
        for word in words:
            assert str(word) in self.err, (word, self.err)
        return self.err


class Evil:
    """Unpickled, it would create the file ``pwned``."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return open, (str(self.folder / "pwned"), "w")


def options(**settings) -> list[str]:
    """batch_size=2 -> ["--batch-size", "2"]."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def adapt_words(data: Path, out: Path, **settings) -> list[str]:
    """The words of a small `medvfm adapt`."""
    return ["adapt", *options(**(SMALL | {"data": data, "out": out} | settings))]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: {path: bytes, None for a folder}."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def save_random_delta(path: Path, model: str, file: Path, labels: dict[str, int], **metadata) -> Path:
    """A prompt-free delta of the last layer with random numbers, for the base weights in a file."""
    base = base_model.load_base(model, classes=len(labels), seed=0, dtype="float32", file=file)
    change = systems.SYSTEMS["linear"].transform(base.model.spec, "none", len(labels))
    semantic = base_model.transformed(base, change)
    adapter = systems.adapter_config("linear", semantic.model)
    shapes = jax.eval_shape(
        base_model.with_adapter(semantic, adapter).init, jax.random.key(0), semantic.params
    )
    rng = np.random.default_rng(0)
    delta = jax.tree.map(lambda s: rng.normal(size=s.shape, scale=2).astype(np.float32), shapes)
    about = {"base": model, "fingerprint": base.fingerprint, "adapter": adapter, "prompt": "none"}
    about |= {
        "transform": change,
        "classes": len(labels),
        "labels": labels,
        "preset": "linear",
        "seed": 0,
        "channel_names": [],
    }
    artifacts.save_delta(path, delta, about | metadata)
    return path
