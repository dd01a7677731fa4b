"""The arithmetic of a bundle is that of the package, to rounding."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvfm_jax.export import bundle, runner
from medvfm_jax.images import Query, make_prompts, preprocess, restore
from medvfm_jax.images.budget import MAX_BYTES
from medvfm_jax.images.frame import filter_of
from medvfm_jax.images.image import BadImage
from medvfm_jax.images.reading import read as read_image
from medvfm_jax.models import MODELS
from tests.images import tiff_files
from tests.images.png_files import deep_png

RNG = np.random.default_rng(0)
PICTURES = {
    "8 bits": RNG.integers(0, 256, (37, 50, 3), dtype=np.uint8),
    "grey": RNG.integers(0, 256, (90, 41), dtype=np.uint8),
    "two channels": RNG.integers(0, 256, (33, 33, 2), dtype=np.uint8),
    "four channels": RNG.integers(0, 256, (33, 33, 4), dtype=np.uint8),
    "16 bits": RNG.integers(0, 4000, (300, 210, 1), dtype=np.uint16),
    "floats": RNG.random((20, 70, 3)).astype(np.float32),
    "Hounsfield": RNG.normal(0, 500, (64, 64)),
    "constant": np.full((9, 9, 3), 7, np.int32),
    "binary": RNG.random((30, 40)) > 0.5,
    "binary, as large as the input": RNG.random((64, 64)) > 0.5,
    "evenly 77": np.full((20, 30), 77, np.uint8),
    "evenly 128": np.full((20, 30), 128, np.uint8),
    "of one colour": np.full((20, 30, 3), [77, 128, 3], np.uint8),
    "evenly a float": np.full((200, 130), 0.3),
    "grey of steps of rounding": (0.5 + 2e-7 * RNG.integers(0, 2, (64, 64))).astype(np.float32),
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


@pytest.mark.parametrize("number", [0, 1, 77, 128, 200, 255])
@pytest.mark.parametrize("shape", [(20, 30), (300, 210, 3), (64, 64), (1000, 3)])
@pytest.mark.parametrize("rule", ["minmax", "z_scores"])
def test_an_evenly_coloured_picture_is_prepared_as_nothing(number, shape, rule):
    """Rounding of the resampling is no contrast."""
    spec = replace(MODELS["sam-tiny-test"].spec, normalise=rule)
    assert not bundle.prepare(card_of(spec), np.full(shape, number, np.uint8))[0].any()


def test_the_least_contrast_is_the_one_of_the_package():
    """A difference of 2 in a million is shown, of half of one is rounding."""
    spec = replace(MODELS["sam-tiny-test"].spec, normalise="minmax")
    for step, most in ((2e-6, 1.0), (5e-7, 0.0)):
        picture = np.full((64, 64), 0.25, np.float32)
        picture[20:30] += np.float32(step * 0.25)
        found = bundle.prepare(card_of(spec), picture)[0]
        assert found.max() == most
        np.testing.assert_array_equal(found, preprocess(spec, picture)[0])


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([((5, 5, 2, 8), ())], "inverted"),
        ([((0, 0, 99, 8), ())], "outside"),
        ([(None, [(1, 1, 1)] * 4)], "slots"),
        ([(None, [(1, 1, 3)])], "label 3"),
        ([(None, [(21, 1, 1)])], "outside"),
        ([(None, [(float("nan"), 1, 1)])], "outside"),
        ([((5, 5, 8), ())], r"Object 1: a box is \(x0"),
        ([(None, [(1, 1, 1)]), ((5, 5, 8, 9, 1), ())], "Object 2: a box"),
        ([((0, 0, 9, 9), [(1, 1)])], "a point is"),
        ([(None, [(1, 1, 1)]), (None, [])], "Object 2 has neither"),
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
        (np.zeros(5), "no picture"),
        (np.zeros((2, 3, 4, 5, 1)), "no picture"),
        (np.zeros((4, 5, 0)), "no picture"),
        (np.zeros((20, 64, 64)), "volume of 64 slices: give one of them"),
        (np.zeros((20, 30, 5), np.uint8), "volume of 5 slices"),
        (np.zeros((20, 30, 7, 1)), "volume of 7 slices"),
        (np.zeros((1, 1)), "1 x 1 pixels, too small; expected at least 2 x 2"),
        (np.zeros((1, 200, 3)), "1 x 200 pixels, too small"),
        (np.zeros((200, 1)), "200 x 1 pixels, too small"),
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


@pytest.mark.parametrize(
    "shape",
    [
        (20, 64, 64),
        (20, 30, 5),
        (20, 30, 4),
        (20, 30, 1),
        (2, 2),
        (1, 1),
        (1, 200),
        (2, 3, 0),
        (5,),
        (4,) * 4,
    ],
)
def test_arrays_are_refused_that_segment_refuses(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    try:
        refused = read_image(tmp_path / "a.npy").is_volume
    except BadImage:
        refused = True
    try:
        bundle.check_picture(bundle.read(tmp_path / "a.npy"))
        own = False
    except ValueError:
        own = True
    assert own == refused


def test_colours_of_16_bits_are_not_halved_unsaid(tmp_path):
    (tmp_path / "a.png").write_bytes(deep_png(np.zeros((4, 5, 3), np.uint16)))
    tiff_files.bare(tmp_path / "a.tif", np.zeros((4, 5, 3), np.uint16), photometric="rgb")
    for name in ("a.png", "a.tif"):
        with pytest.raises(ValueError, match="16 bits per colour"):
            bundle.read(tmp_path / name)


def pages(path):
    array = RNG.integers(0, 256, (2, 20, 30), dtype=np.uint8)
    writers = {
        "bare.tif": lambda: tiff_files.bare(path, array, photometric="minisblack"),
        "slices.tif": lambda: tiff_files.imagej(path, array, "ZYX"),
        "times.tiff": lambda: tiff_files.imagej(path, array, "TYX"),
        "ome.tif": lambda: tiff_files.ome(path, array, "ZYX"),
        "one_directory.tif": lambda: tiff_files.bare(
            path, array[0], photometric="minisblack", description="ImageJ=1.54\nimages=2\nslices=2\n"
        ),
        "film.png": lambda: Image.fromarray(array[0]).save(
            path, save_all=True, append_images=[Image.fromarray(array[1])]
        ),
    }
    writers[path.name]()


@pytest.mark.parametrize(
    "name", ["bare.tif", "slices.tif", "times.tiff", "ome.tif", "one_directory.tif", "film.png"]
)
def test_of_several_pages_none_is_taken_unsaid(tmp_path, name):
    pages(tmp_path / name)
    with pytest.raises(bundle.Refused, match="has several pages; save the one that counts"):
        bundle.read(tmp_path / name)


@pytest.mark.parametrize("writer", ["bare", "imagej", "ome"])
def test_a_tiff_of_one_page_is_read(tmp_path, writer):
    picture = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    axes = () if writer == "bare" else ("YX",)
    getattr(tiff_files, writer)(tmp_path / "a.TIF", picture, *axes)
    np.testing.assert_array_equal(bundle.read(tmp_path / "a.TIF"), picture)


def test_a_photograph_of_two_pictures_is_the_first_as_in_the_package(tmp_path):
    """Telephones write JPEG files with a second, smaller picture (MPO)."""
    first, second = (Image.fromarray(np.full((20, 30, 3), n, np.uint8)) for n in (40, 200))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(bundle.read(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg").array)


def damaged_png(path):
    Image.fromarray(RNG.integers(0, 256, (20, 30), dtype=np.uint8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IEND") - 6] ^= 1  # the checksum of the pixels
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("a.npy", lambda path: path.write_bytes(b""), "cannot be read as a picture"),
        ("a.npy", lambda path: path.write_bytes(b"mine"), "cannot be read as a picture"),
        ("a.npy", lambda path: np.save(path, np.array([{}])), "cannot be read as a picture"),
        ("a.npy", lambda path: np.save(path, np.zeros((4, 5), complex)), "expected an array of numbers"),
        ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\nmine"), "cannot be read as a picture"),
        ("a.png", damaged_png, "cannot be read as a picture"),
        ("a.png", lambda path: Image.new("L", (4, 4)).save(path, "GIF"), "cannot be read as a picture"),
        ("a.gif", lambda path: Image.new("L", (4, 4)).save(path), "unknown type '.gif'"),
        ("a.png", lambda path: path.mkdir(), "is no file"),
        ("a.png", lambda path: None, "is no file"),
    ],
)
def test_files_that_are_no_picture_are_refused_in_a_sentence(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(BadImage):
        read_image(tmp_path / name)
    with pytest.raises(bundle.Refused, match=words) as caught:
        bundle.read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.npy", "a.png"])
def test_the_size_is_checked_before_the_pixels_are_read(tmp_path, monkeypatch, name):
    picture = np.zeros((100, 100), np.uint8)
    np.save(tmp_path / "a.npy", picture)
    Image.fromarray(picture).save(tmp_path / "a.png")
    monkeypatch.setattr(bundle, "MOST_BYTES", 9_999)
    with pytest.raises(bundle.Refused, match="GiB, more than"):
        bundle.read(tmp_path / name)
    monkeypatch.setattr(bundle, "MOST_BYTES", 40_000)
    assert bundle.read(tmp_path / name).shape == (100, 100)


def test_a_bundle_takes_as_many_bytes_as_the_package():
    assert bundle.MOST_BYTES == MAX_BYTES


@pytest.mark.parametrize(("most", "kind"), [(255, np.uint8), (256, np.uint16)])
@pytest.mark.parametrize("suffix", [".npy", ".NPY", ".png", ".PNG"])
def test_masks_keep_their_numbers(tmp_path, suffix, most, kind):
    labels = np.arange(most - 5, most + 1, dtype=np.int32).reshape(2, 3)
    path = tmp_path / f"mask{suffix}"
    bundle.check_mask(path)
    bundle.write(path, labels)
    found = np.load(path) if suffix.lower() == ".npy" else np.asarray(Image.open(path))
    np.testing.assert_array_equal(found, labels)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
    assert found.dtype == (np.int32 if suffix.lower() == ".npy" else kind)


def test_places_for_a_mask_are_checked(tmp_path):
    (tmp_path / "mine.npy").write_bytes(b"mine")
    (tmp_path / "folder.npy").mkdir()
    for name, words in {
        "a.jpg": "should end with",
        "missing/a.npy": "missing is no folder; make it first",
        "mine.npy/a.npy": "mine.npy is no folder",
        "mine.npy": "is there already; give --overwrite",
    }.items():
        with pytest.raises(bundle.Refused, match=words):
            bundle.check_mask(tmp_path / name)
    bundle.check_mask(tmp_path / "mine.npy", overwrite=True)
    with pytest.raises(bundle.Refused, match="another name"):
        bundle.check_mask(tmp_path / "folder.npy", overwrite=True)


def test_pillow_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"mine")
    monkeypatch.setitem(sys.modules, "PIL", None)
    for check in (bundle.read, lambda path: bundle.check_mask(path, overwrite=True)):
        with pytest.raises(bundle.Refused, match=r"needs Pillow: pip install pillow, or give a \.npy"):
            check(tmp_path / "a.png")
    bundle.check_mask(tmp_path / "a.npy")


def test_boxes_and_points_are_of_one_object_or_of_one_each():
    assert bundle.as_objects([], [(1, 2, 1), (3, 4, 0)]) == [(None, [(1, 2, 1), (3, 4, 0)])]
    assert bundle.as_objects([(0, 0, 1, 1)], [(1, 2, 1)]) == [((0, 0, 1, 1), [(1, 2, 1)])]
    assert len(bundle.as_objects([(0, 0, 1, 1)] * 3, [])) == 3
    assert bundle.as_objects([(0, 0, 1, 1)] * 2, [[], [(1, 2, 1)]])[1] == ((0, 0, 1, 1), [(1, 2, 1)])
    assert bundle.as_objects([(0, 0, 1, 1)], [[]]) == [((0, 0, 1, 1), [])]
    with pytest.raises(ValueError, match="needs a prompt"):
        bundle.as_objects([], [])
    with pytest.raises(ValueError, match="3 boxes and 2 lists"):
        bundle.as_objects([(0, 0, 1, 1)] * 3, [[(1, 2, 1)], [(3, 4, 0)]])


@pytest.mark.parametrize(("module", "most"), [(bundle, 420), (runner, 46)])
def test_what_is_shipped_needs_numpy_and_a_runtime_alone(module, most):
    source = Path(module.__file__).read_text("utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {name.split(".")[0] for name in names}
    runtimes = {"onnxruntime", "ai_edge_litert", "jax"}
    assert found <= {
        "numpy",
        "hashlib",
        "json",
        "pathlib",
        "argparse",
        "sys",
        "PIL",
        "medvfm_bundle",
        *runtimes,
    }
    assert len(source.splitlines()) < most
