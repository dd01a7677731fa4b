"""`medvfm compress` with small models: what it leaves is scored and asked like any run, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medvfm_jax.compress import run as module
from medvfm_jax.weights import safetensors_files
from tests.cli.commands import LITE, adapt_words, contents

EFFICIENT = "efficient-tiny-test"  # a plain ViT
QKV = "image_encoder/layers_1/blocks_0/attn/qkv"
SHORT = ("candidates=3", "rounds=1", "rows=4")
QUICK = {
    "integers": SHORT,
    "grouped_activations": (*SHORT, "groups=3", "bits=6"),
    "trained_integers": (*SHORT, "steps=2"),
    "low_rank": ("error=0.3",),
}
FOUR = ("bits=4", "group=16", "compensate=true", "sensitive=0.3")


def words(data, out, method="weight_only", *more, model=LITE, options=()):
    subject = ("--model", model) if isinstance(model, str) else ("--run", model)
    given = options or QUICK.get(method, ())
    chosen = [word for option in given for word in ("--set", option)]
    return (
        "compress",
        *subject,
        "--method",
        method,
        "--data",
        data,
        "--cases",
        2,
        "--out",
        out,
        *chosen,
        *more,
    )


def test_a_model_with_fewer_bits_is_smaller_and_is_scored_and_asked_like_any_run(medvfm, cells, tmp_path):
    out = tmp_path / "int4"
    done = medvfm(*words(cells, out, options=("bits=4", "group=16")), "--json").json
    assert done["bytes"] == (out / "delta.safetensors").stat().st_size
    assert 0 < done["change"] < 1
    arrays, metadata = safetensors_files.read(out / "delta.safetensors")
    codes = {name: array for name, array in arrays.items() if name.endswith(".codes")}
    assert all(array.dtype == np.uint8 for array in codes.values())
    whole = sum(array.nbytes for name, array in arrays.items() if name.startswith("weights:"))
    floats = 8 * sum(array.nbytes for array in codes.values())  # two of 32 bits in a byte
    assert whole < 0.3 * floats
    assert json.loads(metadata["medvfm"])["compression"]["options"]["bits"] == 4
    scores = medvfm("evaluate", "--run", out, "--json").json
    assert scores["model"] == f"{LITE} + weight_only"
    assert scores["compression"]["bits"] == 4
    assert scores["provenance"]["trained"] is None
    picture = next((cells / "images").iterdir())
    mask = tmp_path / "mask.png"
    asked = ("--box", 2, 2, 20, 20, "--out", mask)
    assert medvfm("segment", picture, "--run", out, *asked).code == 0
    assert mask.is_file()
    assert medvfm("report", out).code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "model", "options", "parts"),
    [
        ("integers", LITE, (), {"rest", "weights", "inputs_symmetric", "inputs_gelu", "products"}),
        ("grouped_activations", LITE, (), {"rest", "weights", "inputs_grouped", "products"}),
        ("trained_integers", LITE, (), {"rest", "weights", "inputs_symmetric", "inputs_gelu", "products"}),
        ("weight_only", LITE, FOUR, {"rest", "weights", "fine_weights"}),
        ("low_rank", LITE, (), {"rest", "low_rank"}),
        ("prune", LITE, ("neurons=0.3", "heads=0.2"), {"rest", "neurons", "heads"}),
        ("token_merging", EFFICIENT, (), {"rest"}),
    ],
)
def test_every_method_gives_a_model_that_needs_none_of_its_own_parameters(
    medvfm, cells, tmp_path, method, model, options, parts
):
    out = tmp_path / "run"
    done = medvfm(*words(cells, out, method, model=model, options=options), "--json").json
    arrays, _ = safetensors_files.read(out / "delta.safetensors")
    assert parts <= {name.split(":")[0] for name in arrays}
    assert 0 < done["change"] < 3
    smaller = {"low_rank": 1.0, "prune": 1.0, "token_merging": 1.1}.get(method, 0.6)  # names weigh here
    assert sum(array.nbytes for array in arrays.values()) < smaller * done["bytes_before"]
    record = json.loads((out / "config.json").read_text())
    assert record["resolved"]["compression"]["method"] == method
    scores = medvfm("evaluate", "--run", out, "--cases", 1, "--json").json
    assert scores["model"] == f"{model} + {method}"


@pytest.mark.slow
def test_a_run_is_compressed_with_its_delta_and_split_and_not_twice(medvfm, cells, tmp_path):
    run, out = tmp_path / "run", tmp_path / "int8"
    assert medvfm(*adapt_words(cells, run, model=LITE, adapter="decoder")).code == 0
    (run / "largest_component.json").write_text("{}")
    done = medvfm("compress", "--run", run, "--method", "weight_only", "--cases", 1, "--out", out)
    assert done.code == 0
    assert "keeps the largest component were chosen for its own masks" in done.out
    (run / "largest_component.json").unlink()
    before, after = (json.loads((folder / "config.json").read_text())["resolved"] for folder in (run, out))
    assert after["split"] == before["split"]
    (calibrated,) = after["calibration"]
    assert calibrated["data_sha256"] == before["data_sha256"]
    assert set(calibrated["cases"]) <= set(before["split"]["train"])
    assert after["labels"] == before["labels"]
    whole, small = (medvfm("evaluate", "--run", folder, "--json").json for folder in (run, out))
    assert small["model"] == f"{LITE} + decoder + weight_only"
    a, b = (next(r["mean"] for r in s["summary"] if r["metric"] == "dice") for s in (whole, small))
    assert b == pytest.approx(a, abs=0.05)
    again = tmp_path / "again"
    medvfm(*words(cells, again, model=out)).refused("compressed already")
    medvfm(*words(cells, again, "weight_only", "--prompt", "point", model=run)).refused("leave out --prompt")
    other = medvfm(*words(cells, again, "weight_only", "--dtype", "bfloat16", model=run))
    assert other.code == 1
    assert "computes in float32, and so it will" in other.err
    assert not again.exists()
    medvfm(*words(cells, out, model=run)).refused("already holds a run; choose another --out")
    student = ("--teacher", out, "--student", "student-tiny-test", "--steps", 1, "--out", again)
    medvfm("distill", "--data", cells, *student).refused(
        "it holds no numbers that a student could start with"
    )
    medvfm("generate", "--teacher", out, "--images", 1, "--out", again).refused("is compressed")
    assert not again.exists()


@pytest.mark.slow
def test_calibration_never_sees_the_test_of_the_run_whatever_seed_and_folder_are_given(
    medvfm, cells, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, model=LITE, adapter="decoder"), "--seed", 5).code == 0
    parts = json.loads((run / "config.json").read_text())["resolved"]["split"]
    seen = []
    real = module.training_data

    def training_data(source, *args, **more):
        seen.extend(source.split.train)
        return real(source, *args, **more)

    monkeypatch.setattr(module, "training_data", training_data)
    for seed in range(3):
        given = words(cells, tmp_path / f"{seed}", "weight_only", "--seed", seed, model=run)
        given = [1000 if word == 2 else word for word in given]  # all cases
        assert medvfm(*given).code == 0
    assert set(seen) <= set(parts["train"])


@pytest.mark.parametrize(
    ("method", "model", "options", "more", "said"),
    [
        ("weight_only", LITE, ("bits=9",), (), "bits is 9"),
        ("weight_only", LITE, ("bit=8",), (), "nearest is 'bits'"),
        ("weight_only", LITE, ("sensitive=1",), (), "sensitive is 1"),
        ("grouped_activations", LITE, ("groups=0",), (), "groups is 0"),
        ("grouped_activations", LITE, ("limit=1",), (), "limit is 1"),
        ("trained_integers", LITE, ("steps=0",), (), "steps is 0"),
        ("trained_integers", LITE, ("loss=both",), (), "loss must be"),
        ("weight_only", LITE, ("at=.*/bias",), (), "is no kernel"),
        ("weight_only", LITE, ("at=nothing",), (), "matches no parameter"),
        ("token_merging", LITE, (), (), "has no module of a plain ViT"),
        ("token_merging", LITE, ("at=image_encoder/.*",), (), "has no module of a plain ViT"),
        ("prune", LITE, ("neurons=0", "heads=0"), (), "Nothing is to be taken out"),
        ("prune", LITE, ("neurons=1",), (), "neurons is 1"),
        (
            "low_rank",
            LITE,
            ("error=1e-9", f"at={QKV}"),
            (),
            "give a larger --set error",
        ),
        (
            "token_merging",
            EFFICIENT,
            ("protected=100",),
            (),
            "protected is 100; expected fewer than the 16 tokens",
        ),
        ("token_merging", EFFICIENT, ("share=0.01",), (), "less than one; give a larger --set share"),
        ("wieght_only", LITE, (), (), "nearest is 'weight_only'"),
        ("weight_only", LITE, ("bits",), (), "write option=value, such as bits=4"),
        ("weight_only", LITE, (), ("--cases", 0), "cases is 0"),
        ("weight_only", "missformer-tiny-test", (), (), "adapt it"),
        ("weight_only", LITE, (), ("--data", "no-such-folder"), "no-such-folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    medvfm, cells, tmp_path, method, model, options, more, said
):
    asked = list(words(cells, tmp_path / "run", method, model=model, options=options))
    for name, value in zip(more[::2], more[1::2], strict=True):
        asked[asked.index(name) + 1] = value
    refused = medvfm(*asked)
    assert refused.code in (1, 2)
    sentence = refused.err.splitlines()[-1]
    assert sentence.startswith("medvfm: ")
    assert said in sentence
    assert "unexpected" not in sentence
    assert contents(tmp_path) == {}


def test_pictures_that_show_nothing_calibrate_nothing(medvfm, cells, tmp_path):
    """On a black picture every layer looks as if one rank were enough, and rounding as if it cost nothing."""
    black = shutil.copytree(cells, tmp_path / "black")
    paths = sorted((black / "images").glob("*.png"))
    for path in paths:
        Image.new("RGB", Image.open(path).size, (70, 0, 90)).save(path)
    asked = words(black, tmp_path / "run", "low_rank", model=LITE, options=("error=0.5",))
    medvfm(*asked).refused("Every calibration image is of one even colour", "give other --data")
    assert not (tmp_path / "run").exists()


def test_cases_without_an_object_that_can_be_seen_ask_for_more_cases(medvfm, cells, tmp_path):
    """`--cases` are taken before they are read: those that are taken may be without an object, and others not."""
    empty = shutil.copytree(cells, tmp_path / "empty")
    for part in ("masks", "instances"):
        for path in sorted((empty / part).glob("*.png")):
            mask = Image.open(path)
            Image.fromarray(np.zeros_like(np.asarray(mask))).save(path)
    asked = words(empty, tmp_path / "run", "weight_only", model=LITE)
    medvfm(*asked).refused("nothing to calibrate with", "give more --cases", "is left to use")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_adapter_that_cannot_be_merged_is_named(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, model=LITE, adapter="adaptformer")).code == 0
    medvfm(*words(cells, tmp_path / "out", model=run)).refused("cannot be merged")
    assert not (tmp_path / "out").exists()
