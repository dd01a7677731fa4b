"""A whole SAM with weights of our own against what it answered before: no constant of it changes unnoticed."""

import json

import numpy as np
import pytest

from tests.models import stored_sam

TOLERANCE = (
    2e-4  # as a share of the largest number; the smallest change of a constant below moves 30 times as much
)


@pytest.mark.parametrize("faint", [False, True], ids=["usual", "faint"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("sam")) for n in stored_sam.MODELS]
)
def test_a_forward_pass_gives_the_stored_numbers(name, faint):
    """Encoder, prompt encoder (points, boxes, a mask) and decoder; with faint weights every epsilon shows."""
    stored = json.loads(stored_sam.FILE.read_text())[stored_sam.case(name, faint)]
    found = stored_sam.answers(name, faint)
    assert found.keys() == stored.keys()
    for key, expected in stored.items():
        expected = np.asarray(expected)
        np.testing.assert_allclose(
            found[key], expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=key
        )
