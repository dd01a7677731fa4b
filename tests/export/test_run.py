"""Whole exports from Python: what is written, checked, refused, and kept."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.export import CannotExport, bundle, checking, export, export_encoder, formats, run, runner
from medvfm_jax.export.bundle import Model, network
from medvfm_jax.export.parts import encoder_part
from medvfm_jax.images import Query, make_prompts, preprocess, restore
from medvfm_jax.models import build
from medvfm_jax.runs.run_directory import RunExists
from medvfm_jax.settings.export import ExportConfig
from medvfm_jax.settings.records import BadConfig

SAM = "sam-tiny-test"
NAMES = {"README.md", "check.json", "decoder{}", "encoder{}", "medvfm_bundle.py", "model.json", "run.py"}


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "load", functools.lru_cache(weights.load))
        yield


def params():
    return weights.load(SAM)[1]


def config_of(out, **more):
    return ExportConfig(**{"model": SAM, "out": out, "to": "onnx", "offline": True} | more)


@pytest.mark.parametrize(
    ("to", "dynamic"),
    [
        ("stablehlo", False),
        pytest.param("stablehlo", True, marks=pytest.mark.slow),
        pytest.param("onnx", False, marks=pytest.mark.slow),
        pytest.param("onnx", True, marks=pytest.mark.slow),
        ("litert", False),
    ],
)
def test_a_bundle_gives_the_masks_of_the_model(tmp_path, to, dynamic):
    for module in formats.FORMATS[to].modules:
        pytest.importorskip(module)
    out = tmp_path / "bundle"
    record = export(config_of(out, to=to, dynamic=dynamic, batch=2))
    suffix = formats.FORMATS[to].suffix
    assert {path.name for path in out.iterdir()} == {name.format(suffix) for name in NAMES}
    check = json.loads((out / "check.json").read_text())
    assert [row["file"] for row in check["files"]] == [f"encoder{suffix}", f"decoder{suffix}"]
    assert all(output["error"] <= 1e-4 for row in record["files"] for output in row["outputs"].values())

    model = build(SAM)
    picture, boxes = checking.scene(model.spec, 6, seed=5)
    found = Model(out)(picture, boxes=boxes)
    prepared, frame = preprocess(model.spec, picture)
    prompts = make_prompts(frame, [Query(box) for box in boxes], slots=8)
    wanted = jax.jit(model.apply)(params(), prepared, prompts)
    np.testing.assert_allclose(found["logits"], restore(frame, np.asarray(wanted.logits[:, 0])), atol=1e-4)
    np.testing.assert_allclose(found["iou"], wanted.iou[:, 0], atol=1e-4)
    assert found["labels"].shape == picture.shape[:2]


@pytest.mark.slow
def test_the_best_of_three_masks_is_taken(tmp_path):
    export(config_of(tmp_path / "out", to="stablehlo", multimask=True))
    model = build(SAM)
    picture, boxes = checking.scene(model.spec, 2)
    found = Model(tmp_path / "out")(picture, boxes=boxes, points=[[(3, 3, 0)], [(4, 4, 0)]])
    prepared, frame = preprocess(model.spec, picture)
    queries = [
        Query(box, np.full((1, 2), float(3 + i)), np.zeros(1, np.int32)) for i, box in enumerate(boxes)
    ]
    wanted = model.apply(params(), prepared, make_prompts(frame, queries, slots=8), multimask=True)
    best = np.asarray(wanted.iou).argmax(1)
    logits = np.asarray(wanted.logits)[np.arange(2), best]
    np.testing.assert_allclose(found["logits"], restore(frame, logits), atol=1e-4)


@pytest.mark.slow
def test_the_card_says_what_the_files_take(tmp_path):
    export(config_of(tmp_path / "out", prompts=3, slots=5, to="stablehlo"))
    record = json.loads((tmp_path / "out" / "model.json").read_text())
    spec = build(SAM).spec
    assert record["licence"] == spec.licence
    assert record["parts"]["encoder"]["inputs"][0]["shape"] == [1, *spec.input_shape]
    assert [tensor["shape"] for tensor in record["parts"]["decoder"]["inputs"][1:]] == [[3, 5, 2], [3, 5]]
    assert record["preparation"]["normalise"] == spec.normalise
    assert (
        "| encoder.stablehlo: input | `image` | 1 x 64 x 64 x 3 |"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_bundle_opens_the_files_that_were_checked_alone(tmp_path):
    folder = tmp_path / "out"
    export(config_of(folder, to="stablehlo"))
    assert bundle.Model(folder).card["name"] == SAM
    damaged = folder / "decoder.stablehlo"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"decoder\.stablehlo is not the file that was exported"):
        bundle.Model(folder)
    damaged.unlink()
    with pytest.raises(ValueError, match=r"decoder\.stablehlo is missing; export the model again"):
        bundle.Model(folder)
    card = folder / "model.json"
    said = card.read_text()
    for changed in (
        said.replace('"longest_side"', '"stretch"'),
        "{}",
        "{",
        said.replace('"sha256"', '"other"'),
    ):
        assert changed != said
        card.write_text(changed)
        with pytest.raises(ValueError, match=r"model\.json (is not as it was exported|cannot be read)"):
            bundle.Model(folder)


@pytest.fixture
def runs(monkeypatch, capsys):
    """run.py as a program: (words) -> (exit code, what it said), the model's files never opened."""

    def no_work(*words, **more):
        raise AssertionError("the model was opened")

    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            runner.main()
        return left.value.code, capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "medvfm_bundle", bundle)
    monkeypatch.setattr(bundle, "network", no_work)
    monkeypatch.setattr(bundle.Model, "__init__", no_work)
    return ran


def refused(answer, words):
    code, said = answer
    assert code == 2
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said


def test_the_runner_writes_over_nothing_unasked(tmp_path, runs):
    mask = tmp_path / "mask.npy"
    mask.write_bytes(b"mine")
    refused(runs("picture.npy", mask, "--box", 0, 0, 9, 9), "--overwrite")
    assert mask.read_bytes() == b"mine"


def test_the_runner_checks_files_before_it_opens_the_model(tmp_path, runs, monkeypatch):
    picture = tmp_path / "picture.npy"
    np.save(picture, np.zeros((20, 30), np.uint8))
    refused(runs(picture, tmp_path / "missing" / "mask.npy"), "missing is no folder; make it first")
    refused(runs(tmp_path / "other.npy", tmp_path / "mask.npy"), "other.npy is no file")
    (tmp_path / "empty.npy").touch()
    refused(runs(tmp_path / "empty.npy", tmp_path / "mask.npy"), "cannot be read as a picture")
    (tmp_path / "picture.png").touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(runs(tmp_path / "picture.png", tmp_path / "mask.npy"), "picture.png needs Pillow: pip install")
    refused(runs(picture, tmp_path / "mask.png"), "mask.png needs Pillow: pip install")
    assert {path.name for path in tmp_path.iterdir()} == {"picture.npy", "empty.npy", "picture.png"}


def test_clicks_for_a_model_of_boxes_are_warned_of(tmp_path, monkeypatch, capsys):
    def opened(model, *words, **more):
        model.card = {"prompts": ["box"], "labels": None}

    monkeypatch.setattr(bundle.Model, "__init__", opened)
    monkeypatch.setattr(
        bundle.Model, "__call__", lambda *words, **more: {"labels": np.ones((4, 5), np.int32)}
    )
    np.save(tmp_path / "picture.npy", np.zeros((4, 5), np.uint8))
    for number, (words, warned) in enumerate([(("--point", 1, 1, 1), True), (("--box", 0, 0, 3, 3), False)]):
        asked = [tmp_path / "picture.npy", tmp_path / f"{number}.npy", *words]
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, asked)])
        monkeypatch.setitem(sys.modules, "medvfm_bundle", bundle)
        runner.main()
        assert ("trained with box prompts only" in capsys.readouterr().err) == warned


def test_a_model_of_classes_refuses_prompts(tmp_path, runs, monkeypatch):
    """It would segment as if they were not there."""
    preparation = {"input_shape": [8, 8, 3], "resize": "stretch", "normalise": "unit", "filter": "linear"}
    parts = {"model": {"inputs": [{"shape": [1, 8, 8, 3]}]}}
    card = {"task": "semantic", "preparation": preparation, "parts": parts, "labels": {"1": "cell"}}

    def opened(model, *words, **more):
        model.card = card
        model._parts = {"model": lambda batch: [np.stack([batch[..., 0] * 0, batch[..., 0] - 0.5], 1)]}

    monkeypatch.setattr(bundle.Model, "__init__", opened)
    picture = np.zeros((8, 8), np.uint8)
    picture[:3] = 255
    assert (Model("")(picture)["labels"] == (picture > 0)).all()
    np.save(tmp_path / "picture.npy", picture)
    for words in (("--box", 0, 0, 5, 5), ("--point", 2, 2, 1)):
        answer = runs(tmp_path / "picture.npy", tmp_path / "mask.npy", *words)
        refused(answer, "segments without prompts; leave out boxes and points")
    assert not (tmp_path / "mask.npy").exists()
    with pytest.raises(ValueError, match="without prompts"):
        Model("")(picture, points=np.array([[2, 2, 1]]))


def test_the_runner_says_which_channels_are_seen(tmp_path, runs, monkeypatch, capsys):
    def opened(model, *words, **more):
        model.card = {"labels": None}

    monkeypatch.setattr(bundle.Model, "__init__", opened)
    monkeypatch.setattr(
        bundle.Model, "__call__", lambda model, picture, **more: {"labels": np.zeros(picture.shape[:2], int)}
    )
    np.save(tmp_path / "picture.npy", np.zeros((8, 9, 4), np.uint8))
    words = ["run.py", str(tmp_path / "picture.npy"), str(tmp_path / "mask.npy")]
    monkeypatch.setattr(sys, "argv", words)
    runner.main()
    said = capsys.readouterr()
    assert "has 4 channels; the model sees the first 3" in said.err
    assert said.out == "background 72 pixels\n"


@pytest.mark.slow
def test_a_bundle_refuses_what_segment_refuses_before_the_encoder_works(tmp_path, monkeypatch):
    export(config_of(tmp_path / "out", to="stablehlo"))
    model = Model(tmp_path / "out")
    monkeypatch.setattr(model, "_parts", {})
    box = [(0, 0, 9, 9)]
    for picture, boxes, words in (
        (np.zeros((20, 64, 64), np.uint8), box, "volume of 64 slices"),
        (np.zeros((1, 200), np.uint8), box, "too small"),
        (np.zeros((20, 30), np.uint8), [], "needs a prompt"),
        (np.zeros((20, 30), np.uint8), [(0, 0, 40, 9)], "reaches outside"),
    ):
        with pytest.raises(ValueError, match=words):
            model(picture, boxes=boxes)


def test_a_missing_runtime_is_named(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    export(config_of(tmp_path / "out"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime"):
        Model(tmp_path / "out")


def test_a_file_beyond_its_bound_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("medvfm_jax.export.run.FLOAT_BOUND", 1e-12)
    with pytest.raises(CannotExport, match=r"encoder\.onnx is off by .* more than the bound"):
        export(config_of(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_rounds_activations_is_bounded_as_8_bits_are(tmp_path, monkeypatch):
    """What lies half-way between two steps may become either, which is far more than float32 allows."""
    real = run.subject
    monkeypatch.setattr(run, "subject", lambda config: real(config)._replace(rounds=True))
    monkeypatch.setattr(run, "FLOAT_BOUND", 1e-12)
    record = export(config_of(tmp_path / "out"))
    assert {row["bound"] for row in record["files"]} == {0.1}
    with pytest.raises(CannotExport, match=r"raise --int8-bound\.$"):
        export(config_of(tmp_path / "b", int8_bound=1e-12))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_another_runtime_result_is_found(tmp_path, monkeypatch):
    def wrong(file, part, threads=None):
        run = network(file, part, threads)
        return lambda *inputs: [array + np.float32(1e-3) for array in run(*inputs)]

    monkeypatch.setattr(checking, "network", wrong)
    with pytest.raises(CannotExport, match="encoder"):
        export(config_of(tmp_path / "out", to="stablehlo"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_eight_bits_are_bounded(tmp_path):
    record = export(config_of(tmp_path / "out", int8=True, int8_bound=0.5))
    rows = {row["file"]: row for row in record["files"]}
    assert 1e-4 < rows["encoder.int8.onnx"]["outputs"]["embedding"]["error"] <= 0.5
    assert rows["encoder.int8.onnx"]["bytes"] < rows["encoder.onnx"]["bytes"]
    picture, boxes = checking.scene(build(SAM).spec, 2)
    assert Model(tmp_path / "out", int8=True)(picture, boxes=boxes)["labels"].max() >= 0
    with pytest.raises(CannotExport, match="--int8-bound"):
        export(config_of(tmp_path / "b", int8=True, int8_bound=1e-4))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.slow
def test_an_encoder_is_written_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path))
    model, numbers = build(SAM), params()
    path = export_encoder(model, numbers, to="stablehlo")
    before = path.stat()
    assert export_encoder(model, numbers, to="stablehlo") == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    moved = jax.tree.map(lambda leaf: leaf * 1.01, numbers)
    assert export_encoder(model, moved, to="stablehlo") != path
    content = path.read_bytes()
    for damaged in (content[:10], bytes(len(content))):  # too short; of the same size
        path.write_bytes(damaged)
        assert export_encoder(model, numbers, to="stablehlo").stat().st_size == before.st_size
    said = path.with_name(f"{path.name}.json")
    row = json.loads(said.read_text())
    del row["outputs"]["embedding"]["relative_rms"]  # which scores tell
    said.write_text(json.dumps(row))
    export_encoder(model, numbers, to="stablehlo")
    assert json.loads(said.read_text())["outputs"]["embedding"]["relative_rms"] < 1e-4
    part = encoder_part(None, model.spec, 1)
    inputs = checking.image_inputs(part, model.spec)
    (found,) = network(path, checking.part_record(part))(*inputs)
    np.testing.assert_allclose(found[0], model.encode(numbers, inputs[0][0]), atol=1e-4)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"model": "unet-3d"}, BadConfig, "without a delta"),
        ({"model": "sam-med3d"}, CannotExport, "volumes"),
        ({"model": "vit-tiny-test"}, BadConfig, "features"),
        ({"to": "nonsense"}, formats.UnknownFormat, "nonsense"),
    ],
)
def test_models_that_cannot_be_written_are_refused(tmp_path, more, error, words):
    with pytest.raises(error, match=words):
        export(config_of(tmp_path / "out", **more))
    assert list(tmp_path.iterdir()) == []


def test_one_slot_holds_no_prompt(tmp_path):
    with pytest.raises(BadConfig, match="slots is 1; expected 2 to 1024"):
        config_of(tmp_path, slots=1)


def test_nothing_of_the_users_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunExists, match="exists"):
        export(config_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotExport, match=r"medvfm-jax\[litert\].*--no-deps"):
        export(config_of(tmp_path / "out", to="litert"))
