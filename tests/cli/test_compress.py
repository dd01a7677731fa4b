"""`medvfm compress` with small models: what it leaves is scored and asked like any run, and what it refuses."""

import json

import numpy as np
import pytest

from medvfm_jax.weights import safetensors_files
from tests.cli.commands import LITE, adapt_words, contents

QUICK = {"integers": ("candidates=3", "rounds=1", "rows=4"), "low_rank": ("error=0.3",)}


def words(data, out, method="weight_only", *more, model=LITE, options=()):
    subject = ("--model", model) if isinstance(model, str) else ("--run", model)
    given = options or QUICK.get(method, ())
    chosen = [word for option in given for word in ("--set", option)]
    return ("compress", *subject, "--method", method, "--data", data, "--cases", 2, "--out", out, *chosen, *more)


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
