"""Images, prompts and datasets that are none: one sentence, exit code 1 or 2, nothing written or overwritten."""

import io
import json
import shutil
import struct
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

import medvfm_jax.cli.segment as segment_command
from medvfm_jax.data import make_phantom_dataset
from tests.cli.commands import SAM, Evil, adapt_words, contents
from tests.predict.plain_models import SIZE, inside_box
from tests.predict.plain_segmenter import segmenter

BOX = ("--box", 3, 2, 10, 12)


@pytest.fixture
def no_model(monkeypatch):
    """What is refused must be refused before a model is loaded."""
    monkeypatch.setattr(segment_command, "load_segmenter", None)


@pytest.fixture
def plain(monkeypatch):
    """A model that finds the box, whatever the image."""
    model = segmenter(lambda image, prompts: inside_box(image + 1, prompts), prompts=("box", "point"))
    monkeypatch.setattr(segment_command, "load_segmenter", lambda *_, **__: model)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def stored(array, name):
    """The bytes of an array as a file of this name."""
    if name.endswith(".npy"):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()
    if name.endswith(".nii"):
        return nibabel.Nifti1Image(array, np.eye(4)).to_bytes()
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "TIFF" if name.endswith(".tif") else "PNG")
    return buffer.getvalue()


def huge(name):
    """A few bytes that claim to hold an image of terabytes."""
    if name.endswith(".png"):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2_000_000, 2_000_000, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    if name.endswith(".npy"):
        text = "{'descr': '<f8', 'fortran_order': False, 'shape': (2000000, 2000000), }".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    header = nibabel.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 30_000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


FLOATS = np.random.default_rng(0).uniform(0, 1, (SIZE, SIZE)).astype(np.float32)


def with_value(value):
    array = FLOATS.copy()
    array[3, 4] = value
    return array


def bad_image(kind):
    """(name, bytes, words of the sentence)."""
    word, _, suffix = kind.partition(" ")
    name = f"image.{suffix or 'png'}"
    array = FLOATS if suffix in ("tif", "npy") else (FLOATS * 255).astype(np.uint8)
    array = array[..., None] if suffix == "nii" else array
    if word == "empty":
        return name, b"", "is empty (0 bytes)"
    if word == "cut":
        data = stored(array, name)
        return name, data[: len(data) // 2], "truncated"
    if word == "1x1":
        return name, stored(array[:1, :1], name), "too small for an image"
    if word == "huge":
        return name, huge(name), "at most" if suffix != "npy" else "truncated"
    if word in ("nan", "inf"):
        bad = with_value(np.nan if word == "nan" else -np.inf)
        bad = bad[..., None] if suffix == "nii" else bad
        return name, stored(bad, name), f"has 1 {'NaN' if word == 'nan' else 'infinite'} values"
    if word == "text":
        return name, b"hello", "image."
    if word == "complex":
        return name, stored(array.astype(complex), name), "holds no image"
    return f"image.{suffix}", b"\x00" * 100, "has an unknown type"


@pytest.mark.parametrize(
    "kind",
    [
        f"{word} {suffix}"
        for word in ("empty", "cut", "1x1", "text")
        for suffix in ("png", "tif", "npy", "nii")
    ]
    + [f"huge {suffix}" for suffix in ("png", "npy", "nii")]
    + [f"{word} {suffix}" for word in ("nan", "inf") for suffix in ("tif", "npy", "nii")]
    + ["complex npy", "unknown xyz"],
)
def test_an_image_that_is_none_is_refused_before_a_model_is_loaded(medvfm, no_model, tmp_path, kind):
    name, data, words = bad_image(kind)
    (tmp_path / name).write_bytes(data)
    before = contents(tmp_path)
    words_ = ("segment", tmp_path / name, "--model", SAM, *BOX, "--out", tmp_path / "masks")
    medvfm(*words_).refused(words, tmp_path / name, code=1)
    assert contents(tmp_path) == before


def test_a_missing_image_and_an_array_that_would_run_code(medvfm, no_model, tmp_path):
    words = ("--model", SAM, *BOX, "--out", tmp_path / "masks")
    medvfm("segment", tmp_path / "no.png", *words).refused("no.png cannot be read", "check the name", code=1)
    np.save(tmp_path / "evil.npy", np.array([[Evil(tmp_path)]], dtype=object), allow_pickle=True)
    medvfm("segment", tmp_path / "evil.npy", *words).refused("holds objects", code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.npy"]


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (("--box", 3, 2, 10, 17), "reaches outside the image, which is 16 pixels wide and 16 high"),
        (("--box", -1, 2, 10, 12), "reaches outside the image"),
        (("--box", 10, 2, 3, 12), "is inverted; expected X0 Y0 X1 Y1 with X0 <= X1 and Y0 <= Y1"),
        (("--box", 3, 12, 10, 2), "is inverted"),
        (("--box", "nan", 2, 3, 12), "is inverted"),
        (("--box", 3, 2, "inf", 12), "is inverted"),
        (("--point", 300, 2, 1), "The point 300 2 lies outside the image"),
        (("--point", "nan", 2, 1), "lies outside the image"),
        (("--point", 3, 2, 2), "the label of a point is 1 (inside the object) or 0 (outside)"),
        ((), "needs a prompt: give --box X0 Y0 X1 Y1 or --point X Y LABEL"),
        ((*BOX, "--slice", 1), "is a picture and has no slices"),
        ((*BOX, "--box", 3, 2, 10, 17), "reaches outside the image"),
    ],
)
def test_a_prompt_that_means_nothing_here(medvfm, plain, white, tmp_path, prompts, sentence):
    medvfm("segment", white, "--model", SAM, *prompts, "--out", tmp_path / "m.png").refused(sentence)
    assert list(tmp_path.iterdir()) == [white]


def test_a_slice_that_a_volume_does_not_have(medvfm, plain, volumes, tmp_path):
    scan = volumes / "imagesTr" / "case_000_0000.nii.gz"
    for index in ((), ("--slice", 6), ("--slice", -1)):
        words = ("segment", scan, "--model", SAM, *BOX, *index, "--out", tmp_path / "m.nii.gz")
        medvfm(*words).refused("is a volume of 6 slices", "--slice 0 to 5", code=1)
    assert list(tmp_path.iterdir()) == []


def rewrite(path, change):
    """Store a volume again with the array and the affine that ``change`` gives."""
    volume = nibabel.load(path)
    array, affine = change(np.asarray(volume.dataobj), volume.affine)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def shifted(affine, millimetres):
    moved = affine.copy()
    moved[0, 3] += millimetres
    return moved


VOLUMES = {  # kind -> (of the label map or the image, change, words)
    "shape": ("label", lambda a, f: (a[:-1], f), "shape (15, 16, 6) against (16, 16, 6)"),
    "spacing": ("label", lambda a, f: (a, np.diag([1, 1, 2, 1.0])), "spacing 1 × 1 × 2 mm against 1 × 1 × 3 mm"),
    "position": ("label", lambda a, f: (a, shifted(f, 5.0)), "position or direction (corners up to 5 mm apart)"),
    "flipped": ("label", lambda a, f: (a, np.diag([-1, 1, 3, 1.0])), "position or direction"),
    "undeclared": ("label", lambda a, f: (a + (a > 1) * np.uint8(5), f), "value 7, which dataset.json does not"),
    "fractions": ("label", lambda a, f: (a * np.float32(0.5), f), "values that are not whole numbers"),
    "nan": ("image", lambda a, f: (np.where(a > 700, np.nan, a).astype(np.float32), f), "NaN"),
    "infinite": ("image", lambda a, f: (np.where(a > 700, np.inf, a).astype(np.float32), f), "infinite values"),
    "empty": ("label", None, "is empty (0 bytes)"),
    "cut": ("image", None, "truncated, damaged or no NIfTI file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def one_volume(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("one") / "volumes", "volumes", 2, size=16)


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_volume_that_does_not_fit_its_label(medvfm, one_volume, tmp_path, kind):
    data = shutil.copytree(one_volume, tmp_path / "data")
    which, change, words = VOLUMES[kind]
    label, image = data / "labelsTr" / "case_001.nii.gz", data / "imagesTr" / "case_001_0000.nii.gz"
    path = label if which == "label" else image
    if change is None:
        path.write_bytes(b"" if kind == "empty" else path.read_bytes()[:500])
    else:
        rewrite(path, change)
    before = contents(tmp_path)
    run = tmp_path / "run"
    medvfm(*adapt_words(data, run, val_fraction=0, test_fraction=0)).refused(words, path, code=1)
    evaluate = ("evaluate", "--model", SAM, "--data", data, "--split", "all")
    medvfm(*evaluate, "--out", tmp_path / "new" / "scores.json").refused(words, path, code=1)
    assert contents(tmp_path) == before


def picture_folder(folder, kind):
    """A folder that is no dataset of pictures, and words of the sentence about it."""
    if kind == "missing":
        return "is not a folder"
    folder.mkdir()
    if kind == "empty":
        return "is empty; expected images/ and masks/"
    if kind == "no dataset":
        (folder / "notes.txt").write_text("mine")
        return "is no dataset; expected images/ and masks/"
    for name in ("images", "masks"):
        (folder / name).mkdir()
    if kind == "no images":
        return "has no images"
    for name in ("a", "b"):
        Pillow.fromarray(np.full((16, 16), 90, np.uint8)).save(folder / "images" / f"{name}.png")
    if kind == "no masks":
        return "no image with a mask of the same name"
    mask = np.zeros((16, 16), np.uint8)
    mask[3:9, 3:9] = 1
    for name in ("a", "b"):
        Pillow.fromarray(mask).save(folder / "masks" / f"{name}.png")
    if kind == "a mask of another size":
        Pillow.fromarray(mask[:9]).save(folder / "masks" / "b.png")
        return "shape (9, 16) against (16, 16)"
    if kind == "a coloured mask":
        Pillow.fromarray(np.stack([mask, 0 * mask, mask], -1)).save(folder / "masks" / "b.png")
        return "is a coloured picture where a label map was expected"
    if kind == "a damaged labels.json":
        (folder / "labels.json").write_text("{")
        return "labels.json cannot be read"
    if kind == "labels not declared":
        (folder / "labels.json").write_text(json.dumps({"background": 0, "cell": 5}))
        return "with the value 1, which labels.json does not declare"
    (folder / "masks" / "c.png").write_bytes(b"")
    return "a mask but no image for 'c'"


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "no dataset", "no images", "no masks", "a mask of another size", "a coloured mask",
     "a damaged labels.json", "labels not declared", "a mask without an image"],
)  # fmt: skip
def test_a_folder_that_is_no_dataset(medvfm, tmp_path, kind):
    words = picture_folder(tmp_path / "data", kind)
    before = contents(tmp_path)
    evaluate = ("evaluate", "--model", SAM, "--data", tmp_path / "data", "--split", "all")
    medvfm(*evaluate, "--out", tmp_path / "new" / "scores.json").refused(words, code=1)
    medvfm(*adapt_words(tmp_path / "data", tmp_path / "run", val_fraction=0, test_fraction=0)).refused(
        words, code=1
    )
    assert contents(tmp_path) == before
