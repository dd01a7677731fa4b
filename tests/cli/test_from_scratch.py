"""Networks without published weights, from the command that trains them to the mask of a picture."""

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import adapt_words


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("swin-unet-tiny-test", marks=pytest.mark.slow),
        pytest.param("hiformer-tiny-test", marks=pytest.mark.slow),
        pytest.param("ds-transunet-tiny-test", marks=pytest.mark.slow),
        pytest.param("transunet-tiny-test", marks=pytest.mark.slow),
        pytest.param("missformer-tiny-test", marks=pytest.mark.slow),
    ],
)
def test_adapt_evaluate_and_segment(medvfm, cells, tmp_path, model):
    out, picture = tmp_path / "run", next((cells / "images").iterdir())
    trained = medvfm(*adapt_words(cells, out, model=model, adapter="full", prompt="auto", batch_size=1))
    assert trained.code == 0, trained.err
    evaluated = medvfm("evaluate", "--run", out)
    assert evaluated.code == 0, evaluated.err
    segmented = medvfm("segment", picture, "--run", out, "--out", tmp_path / "mask.png")
    assert segmented.code == 0, segmented.err
    with Image.open(tmp_path / "mask.png") as mask, Image.open(picture) as image:
        assert mask.size == image.size
        assert np.asarray(mask).max() <= 1


def test_another_adapter_than_full_would_leave_it_random(medvfm, cells, tmp_path):
    refused = medvfm(*adapt_words(cells, tmp_path / "run", model="swin-unet", adapter="lora", prompt="auto"))
    refused.refused("swin-unet", "--adapter full")
