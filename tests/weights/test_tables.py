import itertools

import jax
import numpy as np
import pytest

from medvfm_jax.models import catalog
from medvfm_jax.models.sam.efficient_port_table import VIT_SAM
from medvfm_jax.models.sam.port_table import SAM
from medvfm_jax.models.sam.rep_vit_port_table import REP_VIT_SAM
from medvfm_jax.models.sam.tiny_vit_port_table import TINY_VIT_SAM
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.models.unetr.port_table import UNETR
from medvfm_jax.port_tables.table import PLACEHOLDER
from medvfm_jax.weights.port import PortError, check, to_jax, to_torch
from medvfm_jax.weights.tables import TABLES, choose
from tests.weights.dumps import read_dump, targets_of

COVERED = {
    "sam_vit_b": SAM,
    "sam_vit_l": SAM,
    "sam_vit_h": SAM,
    "samed_base_vit_b_512_8cls": SAM,
    "mobile_sam_vit_t": TINY_VIT_SAM,
}


@pytest.mark.parametrize("name", sorted(COVERED))
def test_the_table_covers_the_reference_dump_both_ways(reference_data, name):
    table = COVERED[name]
    state = read_dump(reference_data / "specs" / "state_dicts" / f"{name}.txt")
    ignored = {key for key in state if table.is_ignored(key)}
    assert len(ignored) == {"mobile_sam_vit_t": 31}.get(name, 0)
    plan = check(table, state, targets_of(table, state))
    used = [key for sources, _ in plan.values() for key in sources]
    assert sorted(used) == sorted(set(state) - ignored)


def test_lite_medsam_encoder_dump(reference_data):
    """The dump holds the encoder only: it fits that part of our model, nothing over and nothing open."""
    state = read_dump(
        reference_data / "specs" / "state_dicts" / "litemedsam_image_encoder_tinyvit_256.txt",
        "image_encoder.",
    )
    model = jax.eval_shape(catalog.build("lite-medsam").init, jax.random.key(0))
    encoder = {"image_encoder": model["params"]["image_encoder"]}
    assert choose(state) is TINY_VIT_SAM
    plan = check(TINY_VIT_SAM, state, encoder)
    assert sum(np.prod(state[key].shape) for (key,), _ in plan.values()) > 5_700_000


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("efficient_sam_vits", "mlp.fc1"),
        ("efficient_sam_vitt", "mlp.fc1"),
        ("edge_sam_image_encoder_repvit_m1", "features.0.0.c.weight"),
        ("sam_med2d_vit_b_256_adapter", "Adapter"),
    ],
)
def test_checkpoints_of_other_models_are_refused_with_both_lists(reference_data, name, key):
    folder = reference_data / "specs" / "state_dicts"
    base = read_dump(folder / "sam_vit_b.txt")
    state = read_dump(folder / f"{name}.txt")
    with pytest.raises(PortError) as caught:
        check(SAM, state, targets_of(SAM, base), where=name)
    assert any(key in unused for unused in caught.value.unused_sources)
    assert caught.value.missing_targets or caught.value.problems
    assert len(str(caught.value).splitlines()) < 30


def test_edge_sam_encoder_dump(reference_data):
    """The dump holds the encoder only; with SAM's prompt encoder and mask decoder it is the whole model."""
    folder = reference_data / "specs" / "state_dicts"
    state = read_dump(folder / "edge_sam_image_encoder_repvit_m1.txt", "image_encoder.")
    sam = read_dump(folder / "sam_vit_b.txt")
    state |= {key: value for key, value in sam.items() if not key.startswith("image_encoder")}
    built = catalog.build("edge-sam")
    assert choose(state) is REP_VIT_SAM
    check(REP_VIT_SAM, state, jax.eval_shape(built.init, jax.random.key(0)))
    assert built.parameters == 5_517_552 + 6_220 + 4_058_340


PUBLISHED = {
    "sam-med2d": 271_241_776,
    "efficient-sam-ti": 10_223_204,
    "efficient-sam-s": 26_413_028,
    "edge-sam": 9_582_112,
    # Published as 34.8, 47.7, 61.3, 117.0 and 203.3 million.
    "efficient-vit-sam-l0": 34_792_784,
    "efficient-vit-sam-l1": 47_650_128,
    "efficient-vit-sam-l2": 61_328_592,
    "efficient-vit-sam-xl0": 116_957_904,
    "efficient-vit-sam-xl1": 203_346_128,
    "rep-vit-sam": 27_223_480,  # with its training branches; not published
}
QUICK = ("sam-med2d", "efficient-sam-ti", "edge-sam", "efficient-vit-sam-xl0")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [pytest.param(n, p, marks=[pytest.mark.slow] * (n not in QUICK)) for n, p in PUBLISHED.items()],
)
def test_published_parameter_counts(name, parameters):
    assert catalog.build(name).parameters == parameters


@pytest.mark.parametrize(
    "name",
    [
        "med2d-tiny-test",
        "efficient-tiny-test",
        "edge-tiny-test",
        "rep-tiny-test",
        "efficient-vit-tiny-test",
        "vit-student-tiny-test",
    ],
)
def test_every_parameter_has_one_row_and_comes_back(name):
    """Both ways: the tiny model's parameters under the release's names, and back, bit by bit."""
    shapes = jax.eval_shape(catalog.build(name).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    table = catalog.MODELS[name].tables[0]
    state = to_torch(table, params)
    assert choose(state) is table
    jax.tree.map(np.testing.assert_array_equal, to_jax(table, state, shapes), params)


@pytest.mark.parametrize(
    ("model", "dump"), [("student-vit-ti", "efficient_sam_vitt"), ("student-vit-s", "efficient_sam_vits")]
)
def test_the_encoder_of_a_plain_student_is_that_of_efficient_sam(reference_data, model, dump):
    """With SAM's own prompt encoder and mask decoder in place of the release's."""
    folder = reference_data / "specs" / "state_dicts"
    state = {k: v for k, v in read_dump(folder / f"{dump}.txt").items() if k.startswith("image_encoder")}
    sam = read_dump(folder / "sam_vit_b.txt")
    state |= {key: value for key, value in sam.items() if not key.startswith("image_encoder")}
    assert choose(state) is VIT_SAM
    check(VIT_SAM, state, jax.eval_shape(catalog.build(model).init, jax.random.key(0)))


@pytest.mark.parametrize(
    ("model", "dump"),
    [
        ("sam-b", "sam_vit_b"),
        ("sam-l", "sam_vit_l"),
        ("sam-h", "sam_vit_h"),
        ("medsam", "sam_vit_b"),
        ("mobile-sam", "mobile_sam_vit_t"),
        ("tiny-sam", "mobile_sam_vit_t"),
        ("sam-med2d", "sam_med2d_vit_b_256_adapter"),
        ("efficient-sam-ti", "efficient_sam_vitt"),
        ("efficient-sam-s", "efficient_sam_vits"),
    ],
)
def test_reference_dumps_fit_our_models_exactly(reference_data, model, dump):
    state = read_dump(reference_data / "specs" / "state_dicts" / f"{dump}.txt")
    built = catalog.build(model)
    plan = check(choose(state), state, jax.eval_shape(built.init, jax.random.key(0)))
    buffers = ("running_mean", "running_var", "gaussian_matrix")  # PyTorch does not count these either
    trained = [key for (key,), _ in plan.values() if not key.endswith(buffers)]
    assert built.parameters == sum(int(np.prod(state[key].shape)) for key in trained)


def test_another_grid_and_class_count_is_named(reference_data):
    """SAMed's 512 px base has our keys and other shapes."""
    state = read_dump(reference_data / "specs" / "state_dicts" / "samed_base_vit_b_512_8cls.txt")
    target = jax.eval_shape(catalog.build("sam-b").init, jax.random.key(0))
    with pytest.raises(PortError, match=r"rel_pos_h gives shape \(63, 64\)") as caught:
        check(choose(state), state, target)
    assert any("image_encoder.pos_embed gives shape (1, 32, 32, 768)" in p for p in caught.value.problems)
    assert caught.value.missing_targets == ()
    assert all("output_hypernetworks_mlps" in key for key in caught.value.unused_sources)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_rows_are_unambiguous(table):
    """No two rows fill the same target or take the same key; templates keep their placeholders apart."""
    fill = {"i": "0", "j": "1", "m": None, "a": None}

    def examples(template):
        words = {m[1]: (m[2] or fill.get(m[1], "0")).split("|") for m in PLACEHOLDER.finditer(template)}
        for choice in itertools.product(*words.values()):
            values = dict(zip(words, choice, strict=True))
            yield PLACEHOLDER.sub(lambda m, v=values: v[m[1]], template)

    keys = [key for row in table.rows for source in row.sources for key in examples(source)]
    assert len(set(keys)) == len(keys)
    for key in keys:
        targets = [row.match_source(key) for row in table.rows if row.match_source(key) is not None]
        assert len(targets) == 1, key
        sources, _ = table.sources_of(targets[0])  # raises if two rows fill it
        assert key in sources


def test_every_parameter_of_unetr_has_one_row_and_comes_back():
    """Both ways without MONAI: the tiny model's parameters under MONAI's names and layouts, and back, bit by bit."""
    model = catalog.build("unetr-tiny-test", window=(16, 32, 16), channels=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    state = to_torch(UNETR, params)
    assert choose(state) is UNETR
    assert state["vit.patch_embedding.patch_embeddings.weight"].shape == (16, 2, 16, 16, 16)
    assert state["encoder2.transp_conv_init.conv.weight"].shape == (16, 8, 2, 2, 2)
    assert state["decoder2.conv_block.conv3.conv.weight"].shape == (4, 8, 1, 1, 1)
    unused = {"vit.blocks.0.norm_cross_attn.weight": np.ones(16, np.float32)}
    back = to_jax(UNETR, state | unused, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_every_parameter_of_swin_unetr_has_one_row_and_comes_back():
    """As for UNETR; the index of relative positions, a buffer of MONAI's, is left out."""
    model = catalog.build("swin-unetr-tiny-test", channels=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    state = to_torch(SWIN_UNETR, params)
    assert choose(state) is SWIN_UNETR
    assert state["swinViT.patch_embed.proj.weight"].shape == (6, 2, 2, 2, 2)
    assert state["swinViT.layers1.0.blocks.1.attn.relative_position_bias_table"].shape == (125, 1)
    assert state["swinViT.layers4.0.downsample.reduction.weight"].shape == (96, 384)
    assert state["decoder5.transp_conv.conv.weight"].shape == (96, 48, 2, 2, 2)
    unused = {"swinViT.layers1.0.blocks.0.attn.relative_position_index": np.zeros((27, 27), np.int64)}
    back = to_jax(SWIN_UNETR, state | unused, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)
