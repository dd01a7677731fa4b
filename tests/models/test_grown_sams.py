"""SAMs with further modules: what they keep of SAM, what is drawn, and models that cannot be grown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medvfm_jax import models
from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.sam.desam import ResidualSE, spread
from medvfm_jax.models.sam.samus import OverlappingPatches
from medvfm_jax.models.transforms import kinds_of, seeded, transform

KEY = jax.random.key(0)
FREE = {"kind": "prompt_free", "classes": 3}


def shapes(model):
    return jax.eval_shape(model.init, KEY)


@pytest.fixture(scope="module")
def params():
    """Numbers that say where they are: of sam-tiny-test."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: rng.normal(size=a.shape).astype(np.float32), shapes(models.build("sam-tiny-test"))
    )


@pytest.mark.slow
def test_what_is_sams_is_taken_over_and_the_rest_follows_from_the_seed(params):
    model = models.build("sam-tiny-test")
    deep = {"kind": "deep_upscaling", "of": FREE}
    found = [jax.jit(lambda p, s=s: transform(deep | {"seed": s}, model, p)[1])(params) for s in (0, 0, 1)]
    first, same, other = (flatten_dict(p["params"], sep="/") for p in found)
    own = flatten_dict(transform(FREE, model, params)[1]["params"], sep="/")
    new = {
        path
        for path in first
        if path not in own or np.shape(own[path]) != first[path].shape  # the hypernetworks' last layers
    }
    assert new == {
        *(f"mask_decoder/output_upscaling_{i}/{n}" for i in (6, 9) for n in ("kernel", "bias")),
        *(f"mask_decoder/output_upscaling_{i}/{n}" for i in (4, 7) for n in ("scale", "bias")),
        *(
            f"mask_decoder/output_hypernetworks_mlps_{c}/layers_2/{n}"
            for c in range(3)
            for n in ("kernel", "bias")
        ),
    }
    for path in first.keys() - new:
        np.testing.assert_array_equal(first[path], own[path])
    kernels = [path for path in new if path.endswith("kernel")]
    assert all((first[path] == same[path]).all() for path in new)
    assert all((first[path] != other[path]).any() for path in kernels)


def test_deep_upscaling_is_as_fine_as_the_image_and_leaves_a_fine_grid_alone():
    for name, side in (("sam-tiny-test", 64), ("lite-tiny-test", 32)):
        model = models.build(name)
        deep, _ = transform_shapes({"kind": "deep_upscaling", "of": FREE}, model)
        assert deep.spec.logits_shape == (side, side)
        assert deep.root.doublings == {64: 4, 32: 2}[side]


def transform_shapes(config, model):
    """(model, shapes of its parameters)."""
    found = []

    def convert(params):
        new, params = transform(config, model, params)
        found.append(new)
        return params

    changed = jax.eval_shape(convert, shapes(model))
    return found[0], changed


@pytest.mark.parametrize("name", ["sam-tiny-test", pytest.param("lite-tiny-test", marks=pytest.mark.slow)])
def test_embeddings_carry_what_the_decoder_needs_beside_sam(name):
    """AutoSAM: the image's pixels in each cell; DeSAM: three maps.  Both models' decode of encode has their shapes."""
    model = models.build(name)
    h, w, c = model.spec.embedding
    cell = (model.spec.input_size // h) ** 2 * 3
    auto, weights = transform_shapes({"kind": "auto_sam", "classes": 4}, model)
    assert auto.spec.embedding == (h, w, c + cell)
    image = jnp.zeros(model.spec.input_shape)
    assert jax.eval_shape(auto.encode, weights, image).shape == auto.spec.embedding
    assert jax.eval_shape(auto.apply, weights, image).logits.shape == (4, 4 * h, 4 * w)
    de, weights = transform_shapes({"kind": "desam"}, model)
    assert jax.eval_shape(de.encode, weights, image).shape == de.spec.embedding
    widths = {"sam-tiny-test": 3 * 16, "lite-tiny-test": 16 + 16 + 32}[name]
    assert de.spec.embedding == (h, w, c + widths)


@pytest.mark.slow
def test_the_pixels_in_an_embedding_are_those_of_the_image(params):
    model, changed = transform({"kind": "auto_sam", "classes": 2}, models.build("sam-tiny-test"), params)
    image = np.random.default_rng(1).normal(size=(64, 64, 3)).astype(np.float32)
    packed = np.asarray(model.encode(changed, image))
    np.testing.assert_array_equal(packed[1, 2, 32:].reshape(16, 16, 3), image[16:32, 32:48])


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(12, (2, 5, 8)), (24, (5, 11, 17)), (32, (7, 15, 23)), (4, (0, 1, 2)), (2, (0, 0, 1))],
)
def test_desam_reads_the_global_blocks_before_the_last(blocks, expected):
    assert spread(blocks) == expected


def test_squeeze_and_excitation_of_a_residual_by_hand():
    x = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
    block = ResidualSE(16)
    params = jax.tree.map(lambda a: a * 1.5, block.init(KEY, x))
    p = params["params"]

    def convolved(x, kernel):
        padded, out = np.pad(x, [(1, 1), (1, 1), (0, 0)]), np.zeros((3, 4, 16))
        for i, j in np.ndindex(3, 3):
            out += padded[i : i + 3, j : j + 4] @ np.asarray(kernel)[i, j]
        return (out - out.mean((0, 1))) / np.sqrt(out.var((0, 1)) + 1e-5)

    def leaky(x):
        return np.where(x > 0, x, 0.01 * x)

    y = convolved(leaky(convolved(x, p["conv1"]["kernel"])), p["conv2"]["kernel"])
    weights = np.maximum(y.mean((0, 1)) @ p["squeeze"]["kernel"], 0) @ p["excite"]["kernel"]
    expected = leaky(x + y / (1 + np.exp(-weights)))
    np.testing.assert_allclose(block.apply(params, x), expected, atol=1e-4)


def test_samus_has_overlapping_patches_on_a_quarter_of_the_image():
    model, weights = transform_shapes({"kind": "samus"}, models.build("sam-tiny-test"))
    assert model.spec.input_shape == (16, 16, 3)
    assert model.spec.embedding == (2, 2, 32)
    encoder = weights["params"]["image_encoder"]
    # windows keep SAM's block, global blocks get three adapters
    assert {name for name in encoder["blocks_0"] if "adapter" in name} == set()
    assert {n for n in encoder["blocks_1"] if "adapter" in n} == {
        "space_adapter",
        "refine_adapter",
        "mlp_adapter",
    }
    large = models.sam.entries.SamEncoderConfig()
    patches = jax.eval_shape(
        lambda x: OverlappingPatches(large).init_with_output(KEY, x), jnp.zeros((256, 256, 3))
    )
    assert patches[0].shape == (32, 32, 768)  # 264 pixels, windows of 16 every 8


@pytest.mark.parametrize(
    ("name", "config", "told"),
    [
        ("sam-tiny-test", {"kind": "h_sam"}, r"H-SAM needs a SAM without prompts \(--prompt none\)"),
        ("sam-tiny-test", {"kind": "deep_upscaling"}, "needs a SAM without prompts"),
        ("vit-tiny-test", {"kind": "desam"}, "DeSAM needs a SAM that takes prompts, and 'vit-tiny-test' is"),
        ("vit-tiny-test", {"kind": "auto_sam", "classes": 2}, "AutoSAM needs a SAM that takes prompts"),
        ("sam-tiny-test", {"kind": "auto_sam", "classes": 1}, "from 2 to 65536 classes, not 1"),
        ("sam-tiny-test", {"kind": "desam", "seed": -1}, "A seed is a whole number from 0"),
        ("sam-tiny-test", {"kind": "desam", "seed": "0"}, "A seed is a whole number from 0"),
        ("lite-tiny-test", {"kind": "samus"}, "SAMUS needs a SAM with a ViT"),
        ("sam-tiny-test", {"kind": "samus", "of": {"kind": "samus"}}, "SAMUS needs a SAM with a ViT"),
        ("sam-tiny-test", {"kind": "h_sam", "of": {"kind": "auto_sam", "classes": 2}}, "is another model"),
    ],
)
def test_models_that_cannot_be_grown(name, config, told):
    with pytest.raises(NotConvertible, match=told):
        transform_shapes(config, models.build(name))


def test_stacked_blocks_are_refused():
    for kind in ("samus", "desam"):
        with pytest.raises(NotConvertible, match="stacked"):
            transform_shapes({"kind": kind}, models.build("sam-tiny-test", scan_blocks=True))


def test_seeds_go_to_every_transform_that_draws():
    config = {"kind": "slab", "depth": 3, "of": {"kind": "deep_upscaling", "of": FREE}}
    found = seeded(config, 7)
    assert found == {"kind": "slab", "depth": 3, "of": {"kind": "deep_upscaling", "of": FREE, "seed": 7}}
    assert seeded(None, 7) is None
    assert kinds_of(found) == ("slab", "deep_upscaling", "prompt_free")
    assert kinds_of(None) == ()
