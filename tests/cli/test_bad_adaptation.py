"""Adaptations that cannot be: one clear sentence each, and nothing is trained or written."""

import gzip
import shutil

import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.weights.peft import LowRank, save_peft
from tests.cli.commands import LITE, SAM, adapt_words, save_random_delta

UNETR, MED3D = "unetr-tiny-test", "sam-med3d-tiny-test"
NONE = {"prompt": "none"}


def words(data, out, **settings):
    """The words of a small `medvfm adapt`; lists are several words of an option."""
    lists = {name: settings.pop(name) for name in list(settings) if isinstance(settings[name], tuple)}
    more = [word for name, values in lists.items() for word in (f"--{name}", *map(str, values))]
    return [*adapt_words(data, out, **settings), *more]


@pytest.fixture(scope="session")
def without_size(volumes, tmp_path_factory):
    """The volumes, whose headers say 0 for the size of a voxel, and where it lies nowhere."""
    folder = shutil.copytree(volumes, tmp_path_factory.mktemp("data") / "without_size")
    for file in folder.rglob("*.nii.gz"):
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[80:92] = bytes(12)  # pixdim
        content[252:256] = bytes(4)  # qform_code, sform_code
        file.write_bytes(gzip.compress(bytes(content)))
    return folder


@pytest.mark.parametrize(
    ("data", "settings", "told"),
    [
        # a system on a backbone without its sites
        ("cells", {"model": SAM, "adapter": "vpt"}, ["System 'vpt' does not fit model 'sam-tiny-test'"]),
        (
            "volumes",
            {"model": UNETR, "adapter": "lora", "window": (16, 16, 16), **NONE},
            ["use --adapter full"],
        ),
        (
            "volumes",
            {"model": MED3D, "adapter": "sd_trans", "window": (16, 16, 16), **NONE},
            ["sees volumes already"],
        ),
        # three dimensions on data of two
        ("cells", {"model": SAM, "adapter": "sd_trans", **NONE}, ["slices at once", "has pictures"]),
        ("cells", {"model": SAM, "adapter": "lora", "window": 5}, ["leave out --window"]),
        ("cells", {"model": SAM, "adapter": "lora", "spacing": 1.5}, ["leave out --spacing"]),
        ("cells", {"model": SAM, "adapter": "3dsam_adapter", **NONE}, ["8 slices at once", "has pictures"]),
        ("cells", {"model": MED3D, "adapter": "samed", **NONE}, ["48 slices at once", "has pictures"]),
        (
            "volumes",
            {"model": SAM, "adapter": "sd_trans", "synthesis": 0.5, **NONE},
            ["leave out --synthesis"],
        ),
        ("volumes", {"model": MED3D, "adapter": "samed", "synthesis": 1, **NONE}, ["leave out --synthesis"]),
        ("cells", {"model": SAM, "adapter": "lora", "synthesis": 2}, ["synthesis is 2", "between 0 and 1"]),
        # pictures of objects on data of three
        ("volumes", {"model": SAM, "adapter": "instances", "prompt": "auto"}, ["no objects to tell apart"]),
        # a rank larger than the layer
        (
            "cells",
            {"model": SAM, "adapter": "lora", "set": ("lora.rank=64",)},
            ["a rank of 64 is larger than"],
        ),
        ("cells", {"model": SAM, "adapter": "pissa", "set": ("pissa.rank=64",)}, ["too large"]),
        pytest.param(
            "volumes",
            {"model": SAM, "adapter": "ma_sam", **NONE, "set": ("fact.rank=64",)},
            ["a rank of 64"],
            marks=pytest.mark.slow,
        ),
        ("cells", {"model": SAM, "adapter": "lora", "set": ("lora.rank=0",)}, ["rank must be at least 1"]),
        # slabs
        ("volumes", {"model": SAM, "adapter": "sd_trans", "window": 200, **NONE}, ["at most 128, not 200"]),
        ("volumes", {"model": SAM, "adapter": "sd_trans", "window": 0, **NONE}, ["window is 0"]),
        (
            "volumes",
            {"model": SAM, "adapter": "sd_trans", "window": 7, **NONE},
            ["has 6 slices", "--window 6"],
        ),
        ("volumes", {"model": SAM, "adapter": "ma_sam", "window": 9, **NONE}, ["has 6 slices", "--window 6"]),
        # the size of a voxel
        pytest.param(
            "without_size",
            {"model": UNETR, "adapter": "full", "window": (16, 16, 16), "spacing": 1, **NONE},
            ["Case 'case_000'", "says nothing about the size of its voxels", "without --spacing"],
            marks=pytest.mark.slow,
        ),
        (
            "without_size",
            {"model": UNETR, "adapter": "full", "window": (16, 16, 16), "spacing": 0, **NONE},
            ["No training volume", "leave out --spacing"],
        ),
    ],
)
def test_an_adaptation_that_cannot_be_is_one_sentence(medvfm, request, tmp_path, data, settings, told):
    medvfm(*words(request.getfixturevalue(data), tmp_path / "run", **settings)).refused(*told)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def peft_folder(tmp_path):
    """An update of the first layer of queries, keys and values of the tiny SAM."""
    _, params = weights.load(SAM)
    path = "image_encoder/blocks_0/attn/qkv"
    width = params["params"]["image_encoder"]["blocks_0"]["attn"]["qkv"]["kernel"].shape
    rng = np.random.default_rng(0)
    update = LowRank(rng.normal(size=(width[0], 2)), rng.normal(size=(2, width[1])), 1.0)
    save_peft(tmp_path / "peft", {path: update}, params, SAM)
    return tmp_path / "peft"


@pytest.mark.parametrize("other", [LITE, "sam2-tiny-test", MED3D])
def test_an_adapter_file_of_another_backbone_is_one_sentence(medvfm, peft_folder, tmp_path, other):
    result = medvfm("weights", "import", peft_folder, "--to", other, "--out", tmp_path / "delta.safetensors")
    result.refused("peft", "made for another")
    assert not (tmp_path / "delta.safetensors").exists()


def test_a_delta_of_another_backbone_is_one_sentence(medvfm, cells, tmp_path):
    _, params = weights.load(SAM)
    file = tmp_path / "base.safetensors"
    weights.save_torch(file, params, {})
    delta = save_random_delta(tmp_path / "delta.safetensors", SAM, file, {"background": 0, "cell": 1})
    picture = next((cells / "images").glob("*.png"))
    result = medvfm("segment", picture, "--model", LITE, "--delta", delta, "--out", tmp_path / "m.png")
    result.refused(SAM, "load the weights it was trained on")
    assert not (tmp_path / "m.png").exists()
