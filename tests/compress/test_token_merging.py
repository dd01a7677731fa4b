"""Which modules `compress --method token_merging` lets see fewer tokens."""

import jax
import pytest

from medvfm_jax.adapters.model import example_inputs
from medvfm_jax.compress.calibration import Calibration
from medvfm_jax.compress.record import Subject, applied
from medvfm_jax.compress.token_merging import TRANSFORM
from medvfm_jax.models import build


@pytest.mark.parametrize(("name", "count"), [("vit-student-tiny-test", 4), ("dilated-student-tiny-test", 4)])
def test_attention_within_segments_keeps_all_tokens(name, count):
    """Of 64 tokens 3 go: 61 cannot be cut into the four segments of the dilated one."""
    model = build(name)
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = TRANSFORM.init(Subject(name, model, params), Calibration(()), share=0.05)
    assert found.facts["modules"] == count
    inputs = example_inputs(model.spec)
    logits = jax.eval_shape(applied(found, model).apply, params, found.delta, *inputs).logits
    assert logits.shape == jax.eval_shape(model.apply, params, *inputs).logits.shape
