"""`fewshot` as a whole, on phantoms whose features are the colours of the places themselves."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.few_shot import BadSupport, few_shot, scoring
from medvfm_jax.models.model import Model
from medvfm_jax.settings import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base
from medvfm_jax.types import ModelSpec

SIZE = 32


def colours() -> Base:
    """A model whose features are the picture and its square, pixel by pixel."""
    spec = ModelSpec("colours", SIZE, (SIZE, SIZE, 6), SIZE, normalise="unit", task="features")
    encode = lambda params, image: jnp.concatenate([image, image**2], -1)  # noqa: E731
    return Base(Model(encode, None, None, lambda key: {}, spec), {"params": {"none": jnp.zeros(1)}}, "0" * 64)


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "load_encoder", lambda *_, **__: colours())
    monkeypatch.setattr(scoring, "with_adapter", lambda base, _: scoring_adapted(base))


class scoring_adapted:
    """Stands for an adapted model, of which only the spec is read."""

    def __init__(self, base):
        self.spec = base.model.spec

    def _replace(self, spec):
        self.spec = spec
        return self


def halves(folder, n=6, swap=False):
    """Pictures whose bright part, a rectangle at another place in each, is the label."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        y, x = rng.integers(0, 16, 2)
        mask[y : y + 12, x : x + 10] = 1
        picture = np.where((mask == 1) != swap, 200, 60) + rng.integers(-20, 20, mask.shape)
        Pillow.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"p{i}.png")
        Pillow.fromarray(mask).save(folder / "masks" / f"p{i}.png")
    return folder


@pytest.fixture
def data(tmp_path):
    return halves(tmp_path / "data")


def test_bright_rectangles_are_found(data, tmp_path):
    config = FewShotConfig(str(data), train_cases=2, out=tmp_path / "scores.json", test_fraction=0.4)
    scores = few_shot(config)
    dice = [row["mean"] for row in scores["summary"] if row["metric"] == "dice"]
    assert dice == [1.0]
    assert json.loads((tmp_path / "scores.json").read_text())["few_shot"] == scores["few_shot"]
    assert scores["model"] == "dinov2-s + prototype"
    assert scores["prompt"] == "none"
    chosen, scored = scores["few_shot"]["support_cases"], {row["case"] for row in scores["cases"]}
    assert len(chosen) == 2
    assert not scored & set(chosen)
    for name in scored:
        written = np.asarray(Pillow.open(tmp_path / "predictions" / f"{name}.png"))
        np.testing.assert_array_equal(written, np.asarray(Pillow.open(data / "masks" / f"{name}.png")))


def test_the_support_decides_what_is_found(data, tmp_path):
    dark = halves(tmp_path / "dark", swap=True)
    config = FewShotConfig(str(data), support=str(dark), train_cases=1, out=tmp_path / "s.json")
    scores = few_shot(config)
    (dice,) = [row["mean"] for row in scores["summary"] if row["metric"] == "dice"]
    assert dice < 0.1
    assert scores["few_shot"]["support"] == "dark"


@pytest.mark.parametrize("how", ["k_center", "k_medoids"])
def test_cases_are_chosen_by_features(data, tmp_path, how):
    config = FewShotConfig(str(data), train_cases=2, select_cases=how, out=tmp_path / "s.json", split="all")
    scores = few_shot(config)
    assert scores["few_shot"]["select_cases"] == how
    chosen = scores["few_shot"]["support_cases"]
    assert len(set(chosen)) == 2
    assert {row["case"] for row in scores["cases"]} == {f"p{i}" for i in range(6)} - set(chosen)


def test_a_smaller_support_lies_within_a_larger_one(data, tmp_path):
    base = FewShotConfig(str(data), save_predictions=False, out=tmp_path / "s.json")
    small, large = (few_shot(replace(base, train_cases=n))["few_shot"]["support_cases"] for n in (1, 3))
    assert set(small) < set(large)


def test_volumes_are_seen_slice_by_slice(tmp_path):
    volumes = make_phantom_dataset(tmp_path / "volumes", "volumes", 4, size=16)
    config = FewShotConfig(str(volumes), train_cases=1, slices=6, out=tmp_path / "s.json", val_fraction=0.0)
    scores = few_shot(config)
    assert len({row["label"] for row in scores["cases"]}) >= 2
    assert scores["few_shot"]["slices"] == 6


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"train_cases": 50}, BadSupport, "50 patients"),
        ({"train_cases": 0}, BadConfig, "train_cases"),
        ({"temperature": 0.0}, BadConfig, "temperature"),
        ({"prototypes": 0}, BadConfig, "prototypes"),
    ],
)
def test_what_has_no_meaning_is_refused(data, tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        few_shot(FewShotConfig(str(data), out=tmp_path / "s.json", **settings))
    assert not (tmp_path / "s.json").exists()


def test_a_support_with_other_labels_is_refused(data, tmp_path):
    other = make_phantom_dataset(tmp_path / "volumes", "volumes", 2, size=16)
    with pytest.raises(BadSupport, match="Rename them"):
        few_shot(FewShotConfig(str(data), support=str(other), out=tmp_path / "s.json"))


def test_sizes_of_slices_are_no_prior(tmp_path):
    volumes = make_phantom_dataset(tmp_path / "volumes", "volumes", 2, size=16)
    with pytest.raises(BadConfig, match="choose spatial"):
        few_shot(FewShotConfig(str(volumes), method="transductive", out=tmp_path / "s.json"))


@pytest.mark.parametrize("renamed", [False, True])
def test_a_support_with_images_that_are_scored_is_refused(data, tmp_path, renamed):
    # The same folder, or a copy of it under other names: nothing else tells that the test is known.
    folder = data
    if renamed:
        folder = tmp_path / "copy"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
            for file in (data / name).iterdir():
                (folder / name / f"other_{file.name}").write_bytes(file.read_bytes())
    config = FewShotConfig(str(data), support=str(folder), train_cases=6, out=tmp_path / "s.json")
    with pytest.raises(BadSupport, match="scored too"):
        few_shot(config)
    assert not (tmp_path / "s.json").exists()
