import math

import jax
import pytest

from medvfm_jax.mesh_axes import DATA, MODEL
from medvfm_jax.models import catalog
from medvfm_jax.parallel import (
    RULES,
    BadRules,
    Largest,
    fsdp,
    make_mesh,
    param_shardings,
    spec_of,
    tensor,
)

P = jax.P
QKV = "image_encoder/blocks_3/attn/qkv"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("data=4,model=2")


def shapes(name, **options):
    return jax.eval_shape(catalog.build(name, **options).init, jax.random.key(0))


def test_a_spec_speaks_of_the_last_axes_so_that_stacked_blocks_need_no_rule_of_their_own(mesh):
    assert spec_of(tensor(), mesh, QKV + "/kernel", (8, 24)) == P(None, MODEL)
    assert spec_of(tensor(), mesh, "image_encoder/blocks/block_1/attn/qkv/kernel", (4, 8, 24)) == P(
        None, None, MODEL
    )


def test_the_first_rule_that_matches_the_whole_path_counts(mesh):
    rules = ((r"image_encoder/.*/kernel", P(DATA)), (r".*kernel", P(MODEL)), (r".*", P()))
    assert spec_of(rules, mesh, QKV + "/kernel", (4,)) == P(DATA)
    assert spec_of(rules, mesh, "mask_decoder/x/kernel", (4,)) == P(MODEL)
    assert spec_of(rules, mesh, "mask_decoder/x/kernels", (4,)) == P(None)


def test_largest_divides_the_longest_axis_that_can_be(mesh):
    rule = [(".*", Largest(DATA, least=0))]
    assert spec_of(rule, mesh, "x", (8, 12)) == P(None, DATA)
    assert spec_of(rule, mesh, "x", (8, 13)) == P(DATA, None)
    assert spec_of(rule, mesh, "x", (8, 8)) == P(None, DATA)
    assert spec_of(rule, mesh, "x", (3, 2)) == P(None, None)
    assert spec_of([(".*", Largest(DATA, skip=1, least=0))], mesh, "x", (16, 8)) == P(None, DATA)
    assert spec_of([(".*", Largest(DATA, least=97))], mesh, "x", (8, 12)) == P(None, None)


@pytest.mark.parametrize(
    ("rules", "shape", "sentence"),
    [
        ([(r".*bias", P())], (4, 4), f"No sharding rule matches '{QKV}/kernel'; the rules are '.\\*bias'"),
        ([(r".*", P("rows"))], (4, 4), "names the axis 'rows'; the mesh has clients, replica, data, model"),
        ([(r".*", P(DATA))], (4, 6), "data=4, which does not divide 6"),
        ([(r".*", P(None, None, DATA))], (4, 4), "is for 3 axes"),
    ],
)
def test_what_a_rule_cannot_do_is_refused_with_the_path(mesh, rules, shape, sentence):
    with pytest.raises(BadRules, match=sentence):
        spec_of(rules, mesh, QKV + "/kernel", shape)


def test_a_parameter_without_a_rule_is_named(mesh):
    with pytest.raises(BadRules, match="No sharding rule matches 'image_encoder/blocks_0/attn/proj/bias'"):
        param_shardings([(r"(?!.*proj/bias).*", P())], mesh, shapes("sam-tiny-test"))


def share(rules, mesh, params):
    """Elements that one device holds, of all."""
    leaves = jax.tree.leaves(params)
    placed = jax.tree.leaves(param_shardings(rules, mesh, params))
    held = sum(math.prod(s.shard_shape(leaf.shape)) for s, leaf in zip(placed, leaves, strict=True))
    return held / sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(("name", "divided", "halved"), [("vit-b", 0.26, 0.55), ("lite-medsam", 0.61, 0.9)])
def test_presets_cover_every_parameter_and_divide_what_is_large(mesh, name, divided, halved):
    """Of LiteMedSAM four tenths are mask decoder and prompt encoder, which stay whole."""
    params = shapes(name)
    assert share(RULES["replicated"](), mesh, params) == 1
    assert 0.25 <= share(RULES["fsdp"](), mesh, params) < divided
    assert 0.5 <= share(RULES["tensor"](), mesh, params) < halved


def test_stacked_and_plain_blocks_are_divided_alike(mesh):
    plain, stacked = shapes("vit-b"), shapes("vit-b", scan_blocks=True)
    assert share(tensor(), mesh, plain) == share(tensor(), mesh, stacked)
    assert share(fsdp(), mesh, stacked) == pytest.approx(share(fsdp(), mesh, plain), rel=0.02)


def test_presets_by_name():
    assert RULES["tensor"]() == tensor()
    with pytest.raises(BadRules, match="no set of sharding rules 'fsd', the nearest is 'fsdp'"):
        RULES["fsd"]()
