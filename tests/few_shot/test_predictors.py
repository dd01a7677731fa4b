"""What was learned has to be numbers."""

import numpy as np
import pytest

from medvfm_jax.few_shot.predictors import learned_logits
from medvfm_jax.predict.predictor import NotFinite


def test_logits_that_are_not_finite_are_no_background():
    fine = np.zeros((2, 3, 3), np.float32)
    np.testing.assert_array_equal(learned_logits(fine, "dinov2-s"), fine)
    for bad in (np.nan, np.inf):
        fine[1, 2, 0] = bad
        with pytest.raises(NotFinite, match=r"features of dinov2-s .* not finite .* lower --learning-rate"):
            learned_logits(fine, "dinov2-s")
