"""`medvfm analyze`: gradients and features of small models, as tables and as JSON."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.theory.runs import placement as placement_run
from medvfm_jax.train.dense_encoder import DenseEncoder
from tests.cli.commands import LITE, adapt_words

SAM = "sam-tiny-test"


def placement(data, *more, model=SAM):
    return (
        "analyze",
        "placement",
        "--data",
        data,
        "--model",
        model,
        "--cases",
        3,
        "--prompts-per-image",
        2,
        *more,
    )


@pytest.mark.slow
def test_places_are_ranked_and_the_choice_trains(medvfm, cells, tmp_path):
    words = placement(cells, "--rank", 2, "--budget", 3000, "--at", "image_encoder/.*")
    found = medvfm(*words, "--json").json
    assert found["images"] == 3
    assert all(place["path"].startswith("image_encoder/") for place in found["places"])
    scores = [group["score"] for group in found["groups"]]
    assert scores == sorted(scores, reverse=True)
    assert np.isfinite(
        [group[name] for group in found["groups"] for name in ("gain", "fisher", "signal")]
    ).all()
    # A mean of three gradients is at most their root mean square.
    assert all(group["gain"] <= group["fisher"] * (1 + 1e-5) for group in found["groups"])
    assert 0 < sum(group["trained"] for group in found["chosen"]) <= 3000
    again = medvfm(*words).out
    assert found["chosen"][0]["path"].removesuffix("/kernel") in again
    assert "next: medvfm adapt" in again
    options = ("lora.rank=2", "lora.slices=none", "lora.layout=none", "lora.head_dim=none")
    options += (f"lora.at={found['pattern']}",)
    more = [word for option in options for word in ("--set", option)]
    run = adapt_words(cells, tmp_path / "run", model=SAM, adapter="lora")
    trained = medvfm(*run, *more, "--json").json
    assert trained["trained"] == sum(group["trained"] for group in found["chosen"])


@pytest.mark.slow
def test_models_are_alike_as_their_features_are(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, model=LITE, adapter="decoder")).code == 0
    words = ("analyze", "similarity", "--data", cells, "--cases", 4, "--models", LITE, SAM, run)
    found = medvfm(*words, "--json").json
    assert found["images"] == 4
    alignment = found["alignment"]
    assert alignment[LITE][LITE] == pytest.approx(1)
    assert alignment[LITE][SAM] == pytest.approx(alignment[SAM][LITE])
    assert alignment[LITE][str(run)] == pytest.approx(1), "the decoder alone was tuned"
    assert "centred kernel alignment" in medvfm(*words).out


def conflict(data, *more):
    return ("analyze", "conflict", "--data", data, "--model", SAM, "--adapter", "linear", "--cases", 2,
            "--prompts-per-image", 2, "--val-fraction", 0, "--test-fraction", 0, *more)  # fmt: skip


@pytest.mark.slow
def test_sites_are_compared_by_their_gradients(medvfm, cells):
    found = medvfm(*conflict(cells), "--json").json
    names = [site["site"] for site in found["sites"]]
    assert names == ["bright", "dark"]
    cosine, affinity = np.array(found["cosine"]), np.array(found["affinity"])
    np.testing.assert_allclose(np.diagonal(cosine), 1)
    assert cosine[0, 1] == cosine[1, 0]
    norms = np.array([site["norm"] for site in found["sites"]])
    gram = cosine * np.outer(norms, norms)
    np.testing.assert_allclose(found["diversity"], np.trace(gram) / gram.sum(), rtol=1e-9)
    np.testing.assert_allclose(found["dissimilarity"], 2 * found["diversity"])
    # A small step takes away what its gradient says: rate <g_i, g_j> / L_j.
    small = medvfm(*conflict(cells, "--rate", found["rate"] / 10), "--json").json
    losses = [site["loss"] for site in found["sites"]]
    np.testing.assert_allclose(small["affinity"], small["rate"] * gram / losses, rtol=0.1, atol=2e-5)
    assert (np.diagonal(affinity) > 0).all()
    text = medvfm(*conflict(cells)).out
    assert "groups by cosine: " in text
    assert "halves" in text


@pytest.mark.slow
def test_real_steps_drift_as_predicted(medvfm, cells):
    words = ("analyze", "drift", *conflict(cells)[2:], "--local-steps", 1, 3, "--tolerance", 0.01)
    found = medvfm(*words, "--json").json
    assert found["sites"] == ["bright", "dark"]
    one, three = found["points"]
    assert one["predicted"] == 0
    assert one["measured"] == pytest.approx(0, abs=1e-5)
    assert three["measured"] == pytest.approx(three["predicted"], rel=0.1)
    assert three["angle"] > 0.98
    assert three["loss_central"] < one["loss_central"] < found["loss"]
    slope = three["predicted"] / 2
    assert found["most_steps"] == 1 + int(0.01 / slope)
    alone = medvfm(*words, "--no-simulate", "--json").json
    assert alone["points"][1]["predicted"] == pytest.approx(three["predicted"], rel=1e-4)
    assert alone["points"][1]["measured"] is None


@pytest.mark.slow
def test_a_run_whose_encoder_is_as_published_is_ranked_as_it(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, model=LITE, adapter="decoder")).code == 0
    words = (
        "analyze",
        "transferability",
        "--data",
        cells,
        "--cases",
        4,
        "--points",
        20,
        "--models",
        SAM,
        LITE,
        run,
    )
    found = medvfm(*words, "--json").json
    assert found["images"] == 4
    assert sum(found["points"].values()) == 4 * 2 * 20
    models = {model["model"]: model for model in found["models"]}
    assert models[LITE]["logme"] == models[str(run)]["logme"]
    evidences = [model["logme"]["value"] for model in found["models"]]
    assert evidences == sorted(evidences, reverse=True)
    for model in models.values():
        assert 0 <= model["h_score_shrunk"]["value"] <= model["h_score"]["value"] <= 1 + 1e-9
        assert model["by_chance"] == pytest.approx(model["features"] / 159)
        assert 0 <= model["probe"]["value"] <= 1
        assert -np.log(2) - 1e-9 <= model["n_leep"]["value"] <= 0
    assert "LogME" in medvfm(*words).out


def test_a_copy_of_a_dataset_is_not_far_from_it(medvfm, tmp_path):
    data = make_phantom_dataset(tmp_path / "nuclei", "cells", 8, size=32)
    shutil.copytree(data, tmp_path / "copy" / "nuclei")
    fractions = ("--val-fraction", 0.1, "--test-fraction", 0.1)
    words = ("analyze", "divergence", "--data", data, "--models", LITE, "--permutations", 9, *fractions)
    found = medvfm(*words, "--against", tmp_path / "copy" / "nuclei", "--json").json
    (pair,) = found["pairs"]
    assert pair["images"] == [6, 6]
    assert pair["first"] != pair["second"]
    assert pair["frechet"]["value"] == pytest.approx(0, abs=1e-9)
    assert pair["wasserstein"]["value"] == pytest.approx(0, abs=1e-9)
    assert pair["mmd"]["value"] < 0
    assert pair["frechet"]["p_value"] == 1


def test_sites_that_a_model_tells_apart(medvfm, tmp_path):
    data = make_phantom_dataset(tmp_path / "nuclei", "cells", 16, size=32)
    names = sorted(path.name for path in (data / "images").iterdir())
    for name in names[8:]:  # a site of pictures in which nothing is to be seen
        Pillow.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(data / "images" / name)
    rows = [f"{name},{'dark' if i >= 8 else 'light'}" for i, name in enumerate(names[:-1])]
    (data / "sites.csv").write_text("\n".join(["file,site", *rows, f"{names[-1]},lonely"]))
    words = ("analyze", "divergence", "--data", data, "--models", LITE, "--permutations", 19, "--points", 6)
    result = medvfm(*words, "--val-fraction", 0.05, "--test-fraction", 0.05, "--json")
    (pair,) = result.json["pairs"]
    assert "note: lonely has 1 patient" in result.err
    assert (pair["first"], pair["second"]) == ("dark", "light")
    assert pair["a_distance"]["value"] > 1
    assert pair["mmd"]["p_value"] == pytest.approx(0.05)
    assert [(one["source"], one["target"]) for one in result.json["bounds"]] == [
        ("dark", "light"),
        ("light", "dark"),
    ]
    terms = result.json["bounds"][1]["terms"]
    assert terms["half_distance"] > 0.5
    parts = [terms[name] for name in ("source_error", "half_distance", "joint_error")]
    assert terms["bound"] == pytest.approx(sum(parts))
    assert all(0 <= terms[name] <= 1 for name in ("source_error", "target_error"))


@pytest.mark.slow
def test_a_receptive_field_lies_within_the_input(medvfm, cells):
    words = ("analyze", "receptive-field", "--models", LITE, SAM, "--probes", 1)
    found = medvfm(*words, "--json").json
    assert found["data"] == ""
    for model in found["models"]:
        assert 0 < model["field"]["height"] < model["side"]
        assert model["stride"] <= model["field"]["square"] < 2 * model["side"]
        assert model["error"]["square"] >= 0
    assert "pixels of the model's input" in medvfm(*words, "--data", cells).out


def test_a_learning_curve_is_carried_on(medvfm, tmp_path):
    rows = [{"shots": n, "label": "all", "seeds": [0.9 - 0.4 / n, 0.88 - 0.4 / n]} for n in (1, 2, 4, 8)]
    path = tmp_path / "learning_curve.json"
    path.write_text(json.dumps({"curve": rows}))
    words = ("analyze", "scaling", "--curve", path, "--fit-up-to", 4, "--draws", 20)
    text = medvfm(*words, "--at", 16).out
    assert "predicted" in text
    assert "95 % of resamples of 2 seeds" in text
    record = medvfm(*words, "--json").json
    assert [point["shots"] for point in record["points"]] == [1, 2, 4, 8, 16, 32]
    for row in rows:
        del row["seeds"][1]
    path.write_text(json.dumps({"curve": rows}))
    assert "one seed gives no interval" in medvfm(*words).out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (placement("DATA", "--at", "nothing"), "has no kernel of such a path"),
        (placement("DATA", "--at", "("), "no regular expression"),
        (placement("DATA", "--cases", 1), "cases is 1"),
        (placement("DATA", "--rank", 0), "rank is 0"),
        (conflict("DATA", "--rate", 0), "rate is 0"),
        (conflict("DATA", "--objective", "marginal", "--prompt", "box"), "rates classes against each other"),
        (placement("DATA", model="sam-tiny-tset"), "nearest is"),
        (("analyze", "similarity", "--data", "DATA", "--models", SAM), "two or more"),
        (("analyze", "similarity", "--data", "DATA", "--models", SAM, SAM), "twice"),
        (("analyze", "similarity", "--data", "DATA", "--cases", 3), "cases is 3"),
        (("analyze", "similarity", "--data", "DATA", "--models", SAM, "sam-med3d-tiny-test"), "sees volumes"),
        (
            ("analyze", "similarity", "--data", "DATA", "--models", SAM, "missformer-tiny-test"),
            "random weights",
        ),
        (("analyze", "kernel", "--data", "DATA", "--adapters", "lora", "lora"), "twice"),
        (("analyze", "curvature"), "needs --run"),
        (("analyze", "ablate", "--grid", "nothing.json"), "cannot be read"),
        (("analyze", "transferability", "--data", "DATA", "--models", SAM, SAM), "twice"),
        (("analyze", "transferability", "--data", "DATA", "--points", 0), "points is 0"),
        (
            ("analyze", "transferability", "--data", "DATA", "--models", "missformer-tiny-test"),
            "random weights",
        ),
        (("analyze", "divergence", "--data", "DATA", "--models", SAM), "two are needed"),
        (("analyze", "divergence", "--data", "DATA", "--against", "DATA", "--models", SAM), "two are needed"),
        (("analyze", "divergence", "--data", "DATA", "--permutations", 0), "permutations is 0"),
        (("analyze", "receptive-field", "--models", "sam-med3d-tiny-test"), "sees volumes"),
        (("analyze", "receptive-field", "--models", SAM, "--probes", 0), "probes is 0"),
        (("analyze",), ""),
    ],
)
def test_what_cannot_be_done_is_one_sentence(medvfm, cells, words, sentence):
    medvfm(*(cells if word == "DATA" else word for word in words)).refused(sentence)


@pytest.mark.slow
def test_a_budget_that_nothing_fits_is_said(medvfm, cells):
    assert "give a larger --budget" in medvfm(*placement(cells, "--budget", 1, "--at", ".*/qkv/kernel")).out


def test_a_gradient_that_is_not_finite_is_told_and_in_no_table(medvfm, cells, monkeypatch):
    def broken(*_, **__):
        return lambda params, delta, *_: (jnp.nan * sum(jnp.sum(x) for x in jax.tree.leaves(delta)), {})

    monkeypatch.setattr(placement_run, "make_loss", broken)
    said = medvfm(*placement(cells)).err.splitlines()[-1]
    assert said.startswith("medvfm: The gradient of ")
    assert "on image 1 is not finite" in said


@pytest.mark.slow
def test_kernels_of_adapters_are_compared(medvfm, cells):
    words = ("analyze", "kernel", "--data", cells, "--model", SAM, "--cases", 2, "--outputs", 4)
    found = medvfm(*words, "--prompts-per-image", 2, "--adapters", "linear", "decoder", "--json").json
    first, second = found["adapters"]
    assert {first["adapter"], second["adapter"]} == {"linear", "decoder"}
    assert first["slope"] >= second["slope"] > 0
    assert all(len(one["eigenvalues"]) == one["outputs"] == 8 for one in found["adapters"])
    by_name = {one["adapter"]: one for one in found["adapters"]}
    # "linear" trains some of the numbers that "decoder" trains, so that its kernel is a part of the other's
    assert by_name["linear"]["trained"] < by_name["decoder"]["trained"]
    assert by_name["linear"]["trace"] < by_name["decoder"]["trace"]
    assert by_name["linear"]["slope"] < by_name["decoder"]["slope"]
    assert all(0 < one["alignment"] <= 1 for one in found["adapters"])


@pytest.mark.slow
def test_curvature_before_training_and_after(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    assert medvfm(*adapt_words(cells, run, model=SAM, adapter="linear")).code == 0
    words = ("analyze", "curvature", "--cases", 2, "--iterations", 3)
    start = medvfm(*words, "--data", cells, "--model", SAM, "--adapter", "linear", "--json").json
    after = medvfm(*words, "--run", run, "--product", "gauss_newton", "--json").json
    assert start["trained"] == after["trained"] == start["spectrum"]["size"]
    assert start["spectrum"]["products"] == 6
    assert start["largest_rate"] == 2 / start["spectrum"]["largest"][0]
    assert sum(after["spectrum"]["weights"]) == pytest.approx(1)
    said = medvfm(*words, "--run", cells).err.splitlines()[-1]
    assert said.startswith("medvfm: ")


@pytest.mark.slow
def test_a_line_between_two_runs_and_bounds_of_one(medvfm, cells, tmp_path):
    for seed in (0, 1):
        words = adapt_words(cells, tmp_path / f"run{seed}", model=SAM, adapter="linear", seed=seed)
        assert medvfm(*words).code == 0
    runs = (tmp_path / "run0", tmp_path / "run1")
    words = ("analyze", "barrier", "--cases", 2, "--points", 3)
    found = medvfm(*words, "--runs", *runs, "--json").json
    assert found["places"] == [0, 0.5, 1]
    assert found["images"] == [2, 2]
    both = np.mean([found["first"]["losses"], found["second"]["losses"]], 0)
    np.testing.assert_allclose(found["both"]["losses"], both, rtol=1e-6)
    line = both[[0, 2]].mean()
    assert found["both"]["height"] == pytest.approx(max(both[1] - line, 0), abs=1e-6)
    same = medvfm(*words, "--runs", runs[0], runs[0], "--json").json
    assert same["distance"] == same["both"]["height"] == 0
    around = (
        "analyze",
        "landscape",
        "--run",
        runs[0],
        "--cases",
        1,
        "--points",
        3,
        "--out",
        tmp_path / "plane",
    )
    found = medvfm(*around, "--json").json
    assert (found["part"], found["images"]) == ("validation", 1)
    assert np.isfinite(found["plane"]["losses"]).all()
    assert len({value for line in found["plane"]["losses"] for value in line}) == 9
    stored = json.loads((tmp_path / "plane" / "landscape.json").read_text())
    assert stored["plane"] == found["plane"]
    assert "<svg" in (tmp_path / "plane" / "landscape.svg").read_text()
    bound = ("analyze", "bound", "--run", runs[0], "--cases", 3, "--deviations", 0.01, 1.0, "--draws", 2)
    found = medvfm(*bound, "--bits", 4, "--json").json
    assert found["patients"] == 3
    quiet, loud = found["noisy"]
    assert quiet["information"] == pytest.approx(1e4 * loud["information"], rel=1e-6)
    assert loud["information"] == pytest.approx(found["distance"] ** 2 / 2, rel=1e-4)
    assert quiet["error"] == pytest.approx(found["error"], abs=0.1)
    assert all(found["error"] <= 1 and each["bound"] >= each["error"] for each in found["noisy"])
    assert found["rounded"][0]["information"] >= 4 * found["trained"] * np.log(2)
    assert "1 - Dice" in medvfm(*bound).out


@pytest.mark.slow
def test_lines_between_other_things_are_refused(medvfm, cells, tmp_path):
    for name, adapter in (("a", "linear"), ("b", "bitfit")):
        assert medvfm(*adapt_words(cells, tmp_path / name, model=SAM, adapter=adapter)).code == 0
    words = ("analyze", "barrier", "--runs", tmp_path / "a", tmp_path / "b")
    medvfm(*words).refused("differ in what is trained")


def test_a_grid_is_predicted_trained_and_kept(medvfm, cells, tmp_path):
    grid, out = tmp_path / "grid.json", tmp_path / "out"
    data = shutil.copytree(cells, tmp_path / "data")
    settings = {"data": str(data), "model": SAM, "steps": 2, "batch_size": 1, "prompts_per_image": 2}
    record = {
        "settings": settings | {"adapter": "linear", "val_fraction": 0.2, "test_fraction": 0.4},
        "vary": {"objective": ["auto", "h_sam"]},
        "seeds": [0, 1],
        "tools": ["size", "gradient"],
    }
    grid.write_text(json.dumps(record))
    words = ("analyze", "ablate", "--grid", grid, "--out", out, "--cases", 2, "--test-cases", 2)
    first = medvfm(*words, "--json")
    found = first.json
    good, bad = found["cells"]
    assert (good["name"], bad["name"]) == ("objective=auto", "objective=h_sam")
    assert set(good["dice"]) == {"0", "1"}
    assert good["mean"] == pytest.approx(np.mean(list(good["dice"].values())))
    assert set(good["predicted"]) == {"trained", "gain", "sign_gain", "signal", "fisher"}
    # SAM's decoder has one stage: this cell fails, is listed, and holds nothing up
    assert bad["dice"] == {}
    assert [(one["cell"], one["seed"]) for one in found["failed"] if "seed" in one] == [
        (bad["name"], 0),
        (bad["name"], 1),
    ]
    assert "two stages" in found["failed"][-1]["why"]
    assert found["agreement"]["gain"]["rho"] is None  # one cell has no order
    page = (out / "ablation.html").read_text()
    assert "seed 0, seed 1: " in page  # one reason, once
    assert page.count("two stages") == 1
    assert good["name"] in page
    kept = out / good["name"] / "seed_0" / "delta.safetensors"
    written = kept.stat().st_mtime_ns
    medvfm(*words)
    assert kept.stat().st_mtime_ns == written
    again = json.loads((out / "ablation.json").read_text())["cells"][0]
    assert again["dice"] == good["dice"]
    assert again["training_seconds"] == pytest.approx(good["training_seconds"])
    # a cell of the same name with other settings, or other data, is not what was trained
    grid.write_text(json.dumps(record | {"settings": record["settings"] | {"steps": 3}}))
    medvfm(*words).refused("was started with steps=2, now it is 3")
    grid.write_text(json.dumps(record))
    mask = next((data / "masks").iterdir())
    mask.write_bytes(mask.read_bytes() + b"0")
    medvfm(*words).refused("was started with data_sha256=")
    assert kept.stat().st_mtime_ns == written


def test_a_grid_of_which_nothing_can_be_done_is_refused_and_its_table_lists_why(medvfm, cells, tmp_path):
    grid = tmp_path / "grid.json"
    settings = {"data": str(cells), "model": SAM, "set": ["nonsense"]}
    record = {"settings": settings, "vary": {"adapter": ["lora", "decoder"]}, "tools": ["size"]}
    grid.write_text(json.dumps(record))
    words = ("analyze", "ablate", "--grid", grid, "--out", tmp_path / "out")
    refused = medvfm(*words)
    assert (refused.code, refused.out) == (1, "")
    assert "Nothing could be done" in refused.err
    assert "adapter=lora, tool size, seed 0: 'nonsense' is no setting" in refused.err
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [one.get("tool", one.get("seed")) for one in found["failed"]] == ["size", 0, "size", 0]
    assert found["agreement"] == {}


@pytest.mark.parametrize("tool", ["transferability", "divergence", "receptive-field"])
def test_an_encoder_that_gives_the_same_everywhere_is_refused(medvfm, tmp_path, monkeypatch, tool):
    def constant(self, model, params):
        original(self, model, params)
        encode, self.encode = self.encode, None
        self.encode = jax.jit(lambda params, image: jnp.ones_like(encode(params, image)))

    original = DenseEncoder.__init__
    monkeypatch.setattr(DenseEncoder, "__init__", constant)
    data = make_phantom_dataset(tmp_path / "nuclei", "cells", 8, size=32)
    words = ("--val-fraction", 0.1, "--test-fraction", 0.1, "--models", SAM)
    words += ("--against", data) if tool == "divergence" else ()
    sentences = {
        "transferability": "the same for all examples. Leave it out",
        "divergence": "which have no distance",
        "receptive-field": "depends on no pixel",
    }
    result = medvfm("analyze", tool, "--data", data, *words)
    assert result.code == 1
    assert sentences[tool] in result.err


@pytest.mark.slow
def test_what_a_federated_run_will_send_and_lose(medvfm):
    words = (
        "analyze",
        "rates",
        "--model",
        SAM,
        "--presets",
        "lora",
        "--codecs",
        "int8",
        "drive",
        "--epsilons",
        8,
    )
    found = medvfm(*words, "--json").json
    assert [row["codec"] for row in found["codecs"]] == ["int8", "drive"]
    assert found["privacy"][0]["noise"]["parameters_that_fit"] < 1_024
    out = medvfm(*words).out
    assert "kB up" in out
    assert "numbers that fit" in out


def test_how_far_attention_looks(medvfm, cells):
    words = ("analyze", "attention-distance", "--models", LITE, "--cases", 4)
    found = medvfm(*words, "--json").json
    (model,) = found["models"]
    assert [layer["side"] for layer in model["layers"]] == [3, 5, 3]
    assert all(0 < least < layer["side"] * 2**0.5 for layer in model["layers"] for least in layer["heads"])
    assert "uniform" in medvfm(*words, "--data", cells).out
