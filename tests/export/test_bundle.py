"""The arithmetic of a bundle is that of the package, to rounding."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvfm_jax.export import bundle, runner
from medvfm_jax.images import Query, make_prompts, preprocess, restore
from medvfm_jax.images.frame import filter_of
from medvfm_jax.images.reading import read as read_image
from medvfm_jax.models import MODELS
from tests.images.png_files import deep_png

RNG = np.random.default_rng(0)
PICTURES = {
    "8 bits": RNG.integers(0, 256, (37, 50, 3), dtype=np.uint8),
    "grey": RNG.integers(0, 256, (90, 41), dtype=np.uint8),
    "two channels": RNG.integers(0, 256, (33, 33, 2), dtype=np.uint8),
    "five channels": RNG.integers(0, 256, (33, 33, 5), dtype=np.uint8),
    "16 bits": RNG.integers(0, 4000, (300, 210, 1), dtype=np.uint16),
    "floats": RNG.random((20, 70, 3)).astype(np.float32),
    "Hounsfield": RNG.normal(0, 500, (64, 64)),
    "constant": np.full((9, 9, 3), 7, np.int32),
    "binary": RNG.random((30, 40)) > 0.5,
    "as large as the input": RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8),
}
RULES = [
    {"normalise": "minmax"},
    {"normalise": "mean_std_255", "mean": (123.0, 116.0, 103.0), "std": (58.0, 57.0, 57.5)},
    {"normalise": "mean_std_unit", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2), "resize": "stretch"},
    {"normalise": "unit", "resize": "stretch"},
    {"normalise": "z_scores"},
]


def card_of(spec):
    names = ("input_shape", "resize", "normalise", "mean", "std")
    return {"preparation": {name: getattr(spec, name) for name in names} | {"filter": filter_of(spec)}}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["normalise"])
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_prepared_and_logits_brought_back_as_in_the_package(name, rule):
    spec = replace(MODELS["sam-tiny-test"].spec, **rule)
    wanted, frame = preprocess(spec, PICTURES[name])
    found, own = bundle.prepare(card_of(spec), PICTURES[name])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)
    logits = RNG.normal(size=(2, *spec.logits_shape)).astype(np.float32)
    np.testing.assert_allclose(bundle.restore(own, logits), restore(frame, logits), atol=1e-5)
    queries = [Query(np.array([3, 2, 7.5, 8])), Query(None, np.array([[4, 5.0]]), np.array([1]))]
    queries.append(Query(np.array([0, 0, 9, 9]), np.array([[1, 2.0], [3, 4]]), np.array([0, 1])))
    asked = [((3, 2, 7.5, 8), ()), (None, [(4, 5, 1)]), ((0, 0, 9, 9), [(1, 2, 0), (3, 4, 1)])]
    points, labels = bundle.make_prompts(own, asked, 5)
    prompts = make_prompts(frame, queries, slots=5)
    np.testing.assert_array_equal(labels, prompts.labels)
    np.testing.assert_allclose(points, prompts.points, rtol=1e-6)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([((5, 5, 2, 8), ())], "inverted"),
        ([((0, 0, 99, 8), ())], "outside"),
        ([(None, [(1, 1, 1)] * 4)], "slots"),
        ([(None, [(1, 1, 3)])], "label 3"),
        ([(None, [(21, 1, 1)])], "outside"),
        ([(None, [(float("nan"), 1, 1)])], "outside"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(objects, words):
    with pytest.raises(ValueError, match=words):
        bundle.make_prompts({"original": (20, 20), "scaled": (64, 64), "input": (64, 64)}, objects, 4)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((4, 5), np.nan, np.float32), "NaN"),
        (np.full((4, 5), np.inf), "infinite"),
        (np.zeros((4, 5), np.complex64), "no picture"),
        (np.array([["a", 1]], object), "no picture"),
        (np.zeros((0, 5)), "no picture"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(picture, words):
    with pytest.raises(ValueError, match=words):
        bundle.prepare({"preparation": {}}, picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "turned"])
def test_files_are_read_as_the_package_reads_them(tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8))
    path, options = tmp_path / ("a.jpg" if mode in ("CMYK", "turned") else "a.png"), {}
    if mode == "turned":
        exif = Image.Exif()
        exif[0x112] = 6
        options = {"exif": exif}
    elif mode == "I;16":
        picture = Image.fromarray(np.arange(42, dtype=np.uint16).reshape(6, 7) * 1000)
    elif mode == "PA":  # a palette with transparency
        picture, options = picture.convert("P"), {"transparency": 3}
    else:
        picture = picture.convert(mode)
    picture.save(path, **options)
    wanted = read_image(path).array
    found = bundle.read(path)
    np.testing.assert_array_equal(bundle.to_unit(found).squeeze(), bundle.to_unit(wanted).squeeze())


def test_colours_of_16_bits_are_not_halved_unsaid(tmp_path):
    (tmp_path / "a.png").write_bytes(deep_png(np.zeros((4, 5, 3), np.uint16)))
    with pytest.raises(ValueError, match="16 bits per colour"):
        bundle.read(tmp_path / "a.png")


def test_boxes_and_points_are_of_one_object_or_of_one_each():
    assert bundle.as_objects([], [(1, 2, 1), (3, 4, 0)]) == [(None, [(1, 2, 1), (3, 4, 0)])]
    assert bundle.as_objects([(0, 0, 1, 1)], [(1, 2, 1)]) == [((0, 0, 1, 1), [(1, 2, 1)])]
    assert len(bundle.as_objects([(0, 0, 1, 1)] * 3, [])) == 3
    with pytest.raises(ValueError, match="3 boxes and 2 lists"):
        bundle.as_objects([(0, 0, 1, 1)] * 3, [[(1, 2, 1)], [(3, 4, 0)]])


@pytest.mark.parametrize(("module", "most"), [(bundle, 280), (runner, 52)])
def test_what_is_shipped_needs_numpy_and_a_runtime_alone(module, most):
    source = Path(module.__file__).read_text("utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {name.split(".")[0] for name in names}
    runtimes = {"onnxruntime", "ai_edge_litert", "jax"}
    assert found <= {"numpy", "hashlib", "json", "pathlib", "argparse", "PIL", "medvfm_bundle", *runtimes}
    assert len(source.splitlines()) < most
