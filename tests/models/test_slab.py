import jax
import numpy as np
import pytest

from medvfm_jax import models, weights
from medvfm_jax.models.slab import NoSlab, slab_model
from medvfm_jax.models.transforms import BadTransform, transform

PROMPT_FREE = {"kind": "prompt_free", "classes": 2}


@pytest.mark.slow
def test_a_slab_is_its_slices_where_nothing_mixes_them():
    """encode, decode and apply, with the shapes the spec promises; the parameters are those of the model of slices."""
    model, given = weights.load("lite-tiny-test")
    flat, params = transform(PROMPT_FREE, model, given)
    slab, same = transform({"kind": "slab", "depth": 3, "of": PROMPT_FREE}, model, given)
    assert jax.tree.structure(params) == jax.tree.structure(same)
    assert slab.spec.rank == 3
    assert slab.spec.task == "semantic"
    assert slab.spec.input_shape == (3, *flat.spec.input_shape)
    x = np.random.default_rng(0).normal(size=slab.spec.input_shape).astype(np.float32)

    @jax.jit
    def everything(params, x):
        embedding = slab.encode(params, x)
        slices = jax.vmap(lambda image: flat.apply(params, image).logits)(x)
        return embedding, slab.decode(params, embedding).logits, slab.apply(params, x).logits, slices

    embedding, decoded, logits, slices = everything(params, x)
    assert embedding.shape == slab.spec.embedding
    assert logits.shape == (2, *slab.spec.logits_shape)
    np.testing.assert_array_equal(np.moveaxis(slices, 0, 1), logits)
    np.testing.assert_array_equal(decoded, logits)


def test_what_is_no_slab():
    model = models.build("sam-tiny-test")
    with pytest.raises(NoSlab, match="needs prompts; use --prompt none"):
        slab_model(model, 3)
    with pytest.raises(NoSlab, match="sees volumes already"):
        slab_model(models.build("unetr-tiny-test"), 3)
    for depth in (0, 2.5, "3", 129, 3000, 2**60):
        with pytest.raises(NoSlab, match="at least one slice"):
            slab_model(models.build("unet", classes=2), depth)
    with pytest.raises(BadTransform, match="not of slabs"):
        transform({"kind": "slab", "depth": 2, "of": {"kind": "slab", "depth": 2}}, model, {})
