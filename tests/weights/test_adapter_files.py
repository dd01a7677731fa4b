"""Names that SAMed, SAMed_s and Medical SAM Adapter give their arrays, for SAM ViT-B: all of them, each once."""

import pytest

from medvfm_jax.weights.adapter_files import Place, kind_of, places_of

SHAPES = {f"image_encoder/blocks_{i}/attn/qkv/kernel": (768, 2304) for i in range(12)} | {
    f"mask_decoder/transformer/layers_{i}/self_attn/q_proj/kernel": (256, 256) for i in range(2)
}


def test_names_of_samed_count_q_and_v_of_every_block():
    places = places_of("samed", SHAPES)
    assert set(places) == {f"w_{factor}_{i:03d}" for factor in "ab" for i in range(24)}
    assert places["w_a_000"] == Place("lora", "image_encoder/blocks_0/attn/qkv", "a_q")
    assert places["w_b_023"] == Place("lora", "image_encoder/blocks_11/attn/qkv", "b_v")


def test_samed_s_has_28_more_in_the_decoder():
    """q and v of three attentions in two layers, and of the last one, two factors each."""
    more = places_of("samed_s", SHAPES).keys() - places_of("samed", SHAPES).keys()
    assert len(more) == 2 * 2 * (3 * 2 + 1)
    assert {"sa_a_000", "cti_b_003", "cit_a_002", "fati_qa", "fati_vb"} <= more


def test_medical_sam_adapter_has_three_bottlenecks_in_every_block():
    places = places_of("med_sa", SHAPES)
    assert len(places) == 12 * 3 * 4
    key = "image_encoder.blocks.7.Depth_Adapter.D_fc2.bias"
    assert places[key] == Place("depth", "image_encoder/blocks_7/attn", "up_bias")


@pytest.mark.parametrize("kind", ["samed", "samed_s", "med_sa"])
def test_every_array_has_a_place_of_its_own_and_the_kind_is_told_from_the_names(kind):
    places = places_of(kind, SHAPES)
    assert len(set(places.values())) == len(places)
    assert kind_of(places) == kind
    assert kind_of(["image_encoder.pos_embed"]) is None
