"""What networks of pictures in two parts, trained from scratch, have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption

# Name -> pixels of the input per place of its coarsest map that it needs a multiple of, along one side.
STEPS = {"swin-unet": 32, "hiformer-b": 32, "ds-transunet": 64, "transunet": 32, "missformer": 32}
TINY = [f"{name.removesuffix('-b')}-tiny-test" for name in STEPS]


# One of them in every run: all answer un-batched images, and `vmap` keeps these apart.
@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_one_image_never_sees_another(name):
    model = models.build(name, classes=3)
    params, image = (
        model.init(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), model.spec.input_shape),
    )
    together = jax.jit(jax.vmap(lambda x: model.apply(params, x).logits))(jnp.stack([image, image[::-1]]))
    alone = jax.jit(lambda x: model.apply(params, x).logits)(image[::-1])
    assert alone.shape == (3, *model.spec.logits_shape)
    np.testing.assert_allclose(together[1], alone, atol=1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_options_that_do_not_fit_are_refused(name):
    step = STEPS[name]
    models.build(name, image_size=4 * step)
    with pytest.raises(BadModelOption, match=f"image_size {4 * step + 1} is no positive multiple of {step}"):
        models.build(name, image_size=4 * step + 1)
    with pytest.raises(BadModelOption, match="classes of at least 1, not 0"):
        models.build(name, classes=0)
    with pytest.raises(BadModelOption, match="no option base"):
        models.build(name, base=4)
