"""Small programs whose collectives and traffic are known, compiled for eight devices; and TPU notation as text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from medvfm_jax.parallel.mesh import make_mesh
from medvfm_jax.plan.hlo import Collective, Hotspot, analyse, size

P = jax.P


def compiled(function, mesh, **shapes_and_specs):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in shapes_and_specs.values()
    ]
    return jax.jit(function).trace(*arguments).lower().compile().as_text()


def test_the_gradient_of_replicated_weights_is_summed_over_the_batch():
    text = compiled(
        jax.grad(lambda w, x: (jnp.tanh(x @ w)).sum()),
        make_mesh("data=8"),
        w=((64, 32), P()),
        x=((16, 64), P("data")),
    )
    payload = 64 * 32 * 4
    assert analyse(text).collectives == (Collective("all-reduce", 8, 1, payload, round(2 * payload * 7 / 8)),)


def test_a_collective_in_a_loop_counts_every_turn_and_groups_are_those_of_its_axis():
    def layers(ws, x):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(
                jnp.tanh(x @ w), NamedSharding(mesh, P(None, "model"))
            ), None

        return jax.lax.scan(layer, x, ws)[0]

    mesh = make_mesh("data=2,model=4")
    spec = P(None, "model", None)
    found = analyse(compiled(layers, mesh, ws=((5, 64, 64), spec), x=((8, 64), P(None, "model"))))
    assert found.unknown_loops == 0
    assert {c.group for c in found.collectives} == {4}
    assert sum(c.count for c in found.collectives) % 5 == 0
    assert sum(c.count for c in found.collectives) >= 5


def test_traffic_of_a_product_is_its_operands_and_its_result():
    text = compiled(
        lambda a, b: a @ b, make_mesh("data=1", jax.devices()[:1]), a=((64, 32), P()), b=((32, 16), P())
    )
    assert analyse(text).traffic == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert analyse(text).collectives == ()


def test_a_scan_over_stacked_weights_reads_each_of_them_once():
    def layers(ws, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    turns, side = 50, 64
    one = make_mesh("data=1", jax.devices()[:1])
    traffic = analyse(compiled(layers, one, ws=((turns, side, side), P()), x=((1, side), P()))).traffic
    weights = 4 * turns * side * side
    assert (
        weights < traffic < 4 * weights
    )  # the slice may be copied before its use; never the whole stack each turn


@pytest.mark.parametrize(
    ("shape", "everything", "main"),
    [
        ("f32[2,3]{1,0}", 24, 24),
        ("bf16[]", 2, 2),
        ("(f32[4]{0:T(128)S(1)}, /*index=1*/pred[8]{0})", 24, 8),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048, 0),
        ("token[]", 0, 0),
    ],
)
def test_bytes_of_a_shape(shape, everything, main):
    assert size(shape) == everything
    assert size(shape, main_memory_only=True) == main


TPU = (Path(__file__).parent / "loop_on_tpu.hlo").read_text()


def test_the_notation_of_tpus():
    """Turns from the condition, groups by axis names, memory on the chip no traffic, of the stack one slice a turn."""
    found = analyse(TPU)
    one = 8 * 128 * 2
    assert found.collectives == (Collective("all-reduce", 4, 3, 3 * one, round(3 * 2 * one * 3 / 4)),)
    assert found.cycles == 3 * 700
    assert found.unknown_loops == 0
    slice_and_result, counter, all_reduce_reads, comparison = 2 * one, 4, one, 1 + 4 + 4
    assert found.traffic == 3 * (slice_and_result + counter + all_reduce_reads + comparison)


def test_the_traffic_of_kernels_is_also_counted_apart():
    text = """HloModule m

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %k = bf16[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  ROOT %b = bf16[8,128]{1,0} negate(%k)
}
"""
    found = analyse(text)
    assert (found.kernel_traffic, found.traffic) == (4096, 8192)


def test_hotspots_name_the_module_and_the_pass_and_add_up_to_the_whole():
    found = analyse(TPU)
    first, *others = found.hotspots
    assert first.where == "image_encoder/blocks/attn/qkv/dot_general (again)"
    assert (first.cycles, first.traffic) == (3 * 700, 3 * (2 * 8 * 128 * 2 + 4))
    assert [spot.where for spot in others] == ["no operation of the model"]
    assert sum(spot.traffic for spot in found.hotspots) == found.traffic
    backward = analyse(
        TPU.replace("rematted_computation/", "").replace("blocks/block_3", "blocks_3")
    ).hotspots[0]
    assert backward == Hotspot("image_encoder/blocks/attn/qkv/dot_general (backward)", 2100, first.traffic)
    assert analyse(TPU, hotspots=1).hotspots == (first,)


def test_a_loop_whose_turns_are_not_known_counts_once_and_is_reported():
    found = analyse(
        TPU.replace("compare(%i.2, %three)", "compare(%i.2, %i.2)").replace("constant(3)", "iota()")
    )
    assert found.unknown_loops == 1
    assert found.cycles == 700


@pytest.mark.parametrize(
    ("notation", "group"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
        ("mesh['axis_0'=8] {'axis_0':(1)4}", 4),
        ("{}", 8),
        ("something new", 8),
    ],
)
def test_notations_of_groups(notation, group):
    names = "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}"
    assert names in TPU
    assert [c.group for c in analyse(TPU.replace(names, notation)).collectives] == [group]


SCATTERED = """HloModule m, num_partitions=8

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%all-reduce-scatter.3 (p: bf16[64,128]) -> bf16[16,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %r = bf16[64,128]{1,0} all-reduce(%p), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %zero = u32[] constant(0)
  ROOT %s = bf16[16,128]{1,0} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={16,128}
}

ENTRY %main (g: bf16[64,128]) -> bf16[16,128] {
  %g = bf16[64,128]{1,0} parameter(0)
  ROOT %f = bf16[16,128]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    payload = 64 * 128 * 2
    assert analyse(SCATTERED).collectives == (Collective("reduce-scatter", 4, 1, payload, payload * 3 // 4),)
    plain = analyse(SCATTERED.replace("all-reduce-scatter.3", "sum_and_slice")).collectives
    assert plain == (Collective("all-reduce", 4, 1, payload, 2 * payload * 3 // 4),)


def test_a_gather_that_runs_beside_products_counts_where_it_starts():
    """libtpu repeats it in every fusion that moves a part of it; three turns of a loop here."""
    gather = (
        "all-gather(%{0}), channel_id=7, replica_groups=[1,8]<=[8], dimensions={{0}}, "
        'frontend_attributes={{chain_id="0"}}'
    )
    text = f"""HloModule m, num_partitions=8

%starting (p: bf16[8,128]) -> bf16[64,128] {{
  %p = bf16[8,128]{{1,0}} parameter(0)
  %first = bf16[64,128]{{1,0}} {gather.format("p")}
  ROOT %c = bf16[64,128]{{1,0}} custom-call(%first), custom_call_target="AsyncCollectiveStart"
}}

%going_on (q: bf16[8,128]) -> bf16[64,128] {{
  %q = bf16[8,128]{{1,0}} parameter(0)
  ROOT %next = bf16[64,128]{{1,0}} {gather.format("q")}
}}

ENTRY %main (g: bf16[8,128]) -> bf16[64,128] {{
  %g = bf16[8,128]{{1,0}} parameter(0)
  %a = bf16[64,128]{{1,0}} fusion(%g), kind=kCustom, calls=%starting
  ROOT %b = bf16[64,128]{{1,0}} fusion(%g), kind=kCustom, calls=%going_on
}}
"""
    assert analyse(text).collectives == (Collective("all-gather", 8, 1, 2048, 7 * 2048),)


def test_a_wrapped_collective_counts_once_and_both_branches_of_a_condition_are_read():
    payload = 64 * 128
    text = """HloModule m, num_partitions=8

%wrapped (p: f8e4m3b11fnuz[64,128]) -> f8e4m3b11fnuz[8,128] {
  %p = f8e4m3b11fnuz[64,128]{1,0} parameter(0)
  ROOT %s = f8e4m3b11fnuz[8,128]{1,0} reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%yes (p: f8e4m3b11fnuz[64,128]) -> f8e4m3b11fnuz[8,128] {
  %p = f8e4m3b11fnuz[64,128]{1,0} parameter(0)
  %s = ((f8e4m3b11fnuz[64,128]{1,0}), f8e4m3b11fnuz[8,128]{1,0}, s32[]) async-start(%p), calls=%wrapped
  %u = ((f8e4m3b11fnuz[64,128]{1,0}), f8e4m3b11fnuz[8,128]{1,0}, s32[]) async-update(%s), calls=%wrapped
  ROOT %d = f8e4m3b11fnuz[8,128]{1,0} async-done(%u), calls=%wrapped
}

%no (p: f8e4m3b11fnuz[64,128]) -> f8e4m3b11fnuz[8,128] {
  %p = f8e4m3b11fnuz[64,128]{1,0} parameter(0)
  ROOT %s = f8e4m3b11fnuz[8,128]{1,0} slice(%p), slice={[0:8], [0:128]}
}

ENTRY %main (g: f8e4m3b11fnuz[64,128], q: pred[]) -> f8e4m3b11fnuz[8,128] {
  %g = f8e4m3b11fnuz[64,128]{1,0} parameter(0)
  %q = pred[] parameter(1)
  ROOT %c = f8e4m3b11fnuz[8,128]{1,0} conditional(%q, %g, %g), true_computation=%yes, false_computation=%no
}
"""
    assert analyse(text).collectives == (Collective("reduce-scatter", 8, 1, payload, payload * 7 // 8),)
