import jax
import numpy as np
import pytest

from medvfm_jax.models import build, to_semantic
from medvfm_jax.models.semantic import NotConvertible


def test_with_four_classes_the_logits_are_the_promptable_ones():
    model = build("lite-tiny-test")
    params = model.init(jax.random.key(0))
    semantic, converted = to_semantic(model, params, 4)
    embedding = jax.random.normal(jax.random.key(1), model.spec.embedding)
    logits = jax.jit(semantic.decode)(converted, embedding, None).logits
    many = jax.jit(lambda *a: model.decode(*a, multimask=True))(params, embedding, None)
    np.testing.assert_allclose(logits[1:], many.logits[0], atol=1e-5)


def test_what_cannot_convert_says_so():
    model = build("lite-tiny-test")
    params = model.init(jax.random.key(0))
    with pytest.raises(NotConvertible, match="two classes"):
        to_semantic(model, params, 1)
    unet = build("unet", classes=2)
    with pytest.raises(NotConvertible, match="unet"):
        to_semantic(unet, {}, 2)
