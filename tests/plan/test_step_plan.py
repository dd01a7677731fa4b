"""Estimates from counts as closed forms; refusals; one plan for this machine, one for a TPU slice (slow)."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from medvfm_jax.adapters import Count
from medvfm_jax.parallel import rules
from medvfm_jax.parallel.errors import BadMesh, BadRules
from medvfm_jax.plan import step_plan
from medvfm_jax.plan.chips import CHIPS, Chip
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.flops import Flops
from medvfm_jax.plan.gpus import BOARDS, chip_of
from medvfm_jax.plan.hlo import Collective, Program
from medvfm_jax.plan.step_plan import advise_step, estimate, out_of_memory, plan
from medvfm_jax.plan.topologies import devices_of
from medvfm_jax.settings.plan import PlanConfig
from medvfm_jax.settings.records import BadConfig

CHIP = Chip("test", flops=100.0, hbm=1000, bandwidth=10.0, ici=5.0, clock=2.0, dimensions=2, pod=4)
TINY = {
    "model": "sam-tiny-test", "adapter": "linear", "image_size": 32, "prompts_per_image": 0, "embeddings": "off",
}  # fmt: skip
without_libtpu = importlib.util.find_spec("libtpu") is None
without_cuda = importlib.util.find_spec("jax_plugins") is None


def test_time_is_the_slowest_of_three_and_then_the_collectives():
    one = Program((Collective("all-reduce", 4, 2, 20, 30),), traffic=40, cycles=6, unknown_loops=0)
    flops = Flops(model=1600, executed=2000)
    speed = estimate(flops, one, CHIP, devices=4)
    assert (speed.roofline, speed.compiler, speed.collectives) == (
        5.0,
        3.0,
        6.0,
    )  # 2000 / 4 / 100 = 5, traffic 4
    assert speed.step == 11.0
    assert speed.utilisation == pytest.approx(1600 / (4 * 100 * 11))
    slower = estimate(flops, Program((), 70, 16, 0), CHIP, devices=4)
    assert (slower.roofline, slower.step) == (7.0, 8.0)


def test_kernels_take_the_time_the_compiler_does_not_know():
    """2 devices; units 600 / 2 / 100 = 3, traffic 20 / 10 = 2: the compiler's 6 / 2 = 3 and 3 more."""
    program = Program((), traffic=30, cycles=6, unknown_loops=0, kernel_traffic=20)
    speed = estimate(Flops(model=100, executed=200, kernels=600), program, CHIP, devices=2)
    assert (speed.roofline, speed.compiler, speed.kernels, speed.step) == (3.0, 3.0, 3.0, 6.0)
    waiting = estimate(Flops(model=100, executed=200, kernels=200), program, CHIP, devices=2)
    assert (waiting.kernels, waiting.step) == (2.0, 5.0)


def test_a_collective_takes_time_whatever_it_carries():
    """Groups of 16 on a torus of two dimensions: 4 x 4, so 2 x 4 / 2 = 4 hops, an all-reduce twice that."""
    slow = replace(CHIP, hop=0.25)
    kinds = ("all-gather", 3.0), ("reduce-scatter", 3.0), ("all-reduce", 6.0), ("collective-permute", 0.75)
    for kind, seconds in kinds:
        program = Program((Collective(kind, 16, 3, 0, 10),), 0, 0, 0)
        speed = estimate(Flops(0, 0), program, slow, devices=16)
        assert (speed.latency, speed.collectives) == pytest.approx((seconds, 2 + seconds))
    assert CHIPS["v5e"].hop == 1e-6
    assert CHIPS["h100"].hop == 0


def test_utilisation_is_a_range_where_kernels_take_part():
    """As below, 3 s of kernels beside 3 s of the compiler's; at half of their bound they take 6."""
    program = Program((), traffic=30, cycles=6, unknown_loops=0, kernel_traffic=20)
    flops = Flops(model=100, executed=200, kernels=600)
    speed = estimate(flops, program, CHIP, devices=2, kernel_efficiency=0.5)
    assert (speed.step, speed.slow_step) == (6.0, 9.0)
    assert speed.low_utilisation / speed.utilisation == pytest.approx(6 / 9)
    without = estimate(Flops(100, 200), Program((), 30, 6, 0), CHIP, devices=2, kernel_efficiency=0.5)
    assert without.low_utilisation == without.utilisation
    with pytest.raises(BadPlan, match="kernel_efficiency is 0; expected more than 0 and at most 1"):
        plan(PlanConfig(**TINY | {"kernel_efficiency": 0}))


def test_a_roofline_of_a_gpu_has_its_kernels_in_it():
    program = Program((), traffic=30, cycles=0, unknown_loops=0, kernel_traffic=20)
    gpu = replace(CHIP, backend="gpu", clock=None)
    speed = estimate(Flops(model=100, executed=200, kernels=6000), program, gpu, devices=1)
    assert (speed.roofline, speed.kernels, speed.step) == (3.0, 0.0, 3.0)


def test_utilisation_at_the_roofline_is_the_share_that_is_not_recomputed():
    flops = Flops(model=300, executed=400)
    assert estimate(flops, Program((), 0, 0, 0), CHIP, devices=1).utilisation == 0.75


def test_the_table_agrees_with_the_published_units():
    """v5e: 4 matrix units of 128 x 128; v5p: 8 in its two cores; a multiply-add per cycle each."""
    for name, units in (("v5e", 4), ("v5p", 8)):
        assert units * 128 * 128 * 2 * CHIPS[name].clock == pytest.approx(CHIPS[name].flops, rel=0.005)


def test_the_table_of_gpus_agrees_with_the_published_units():
    """4 matrix units per multiprocessor, with 256 (Ampere) or 512 (Hopper) multiply-adds of bfloat16 per cycle."""
    for name, units, clock in (
        ("a100", 4 * 256, 1.41e9),
        ("h100", 4 * 512, 1.83e9),
        ("h200", 4 * 512, 1.83e9),
    ):
        assert BOARDS[name].multiprocessors * units * 2 * clock == pytest.approx(CHIPS[name].flops, rel=0.005)


def test_gpus_of_several_hosts_exchange_over_the_network():
    one = Program((Collective("all-reduce", 4, 2, 20, 30),), traffic=0, cycles=0, unknown_loops=0)
    within, between = (estimate(Flops(0, 0), one, chip_of("h100", hosts), devices=4) for hosts in (1, 2))
    assert within.collectives == pytest.approx(30 / 450e9)
    assert between.collectives == pytest.approx(30 / 50e9)  # also where they are fewer than a host could hold


@pytest.mark.parametrize(
    ("settings", "backend", "devices", "parts"),
    [
        ({}, "cpu", 2, 4),
        ({}, "tpu", 2, 1),
        ({"accumulate": 2}, "cpu", 1, 2),
        ({"model": "unet", "adapter": "full"}, "cpu", 1, 1),
        ({"global_batch": 1}, "cpu", 2, 1),
    ],
)
def test_a_batch_has_the_parts_that_adapt_would_make(settings, backend, devices, parts):
    """Adapt's own rule: one image after the other on CPUs, but for models that are faster with whole batches."""
    asked = PlanConfig(**TINY | {"global_batch": 8} | settings)
    assert step_plan._with_parts(asked, backend, devices).accumulate == parts


@pytest.mark.parametrize(
    ("settings", "trained", "advice"),
    [
        ({"keep": "everything"}, 10, "--keep products: everything"),
        ({"keep": "products", "global_batch": 8}, 10, "--accumulate 2"),
        ({"keep": "products", "global_batch": 2}, 10, "--keep nothing"),
        ({"adapter": "full"}, 6e8, "--rules fsdp: weights, gradients and moments"),
        ({"global_batch": 8}, 10, "--accumulate 2: every device works on 4 images"),
        ({"global_batch": 8, "accumulate": 2}, 10, "--accumulate 4: every device works on 2 images"),
        ({"global_batch": 2}, 10, "--rules fsdp: the weights are whole"),
        ({"global_batch": 2, "rules": "fsdp"}, 10, "a smaller --image-size"),
    ],
)
def test_the_first_thing_to_change(settings, trained, advice):
    config = PlanConfig(
        **{"model": "sam-h", "mesh": "data=2,model=4", "keep": "nothing", "accumulate": 1} | settings
    )
    mesh = SimpleNamespace(shape={"clients": 1, "replica": 1, "data": 2, "model": 4})
    assert advise_step(config, mesh, Count(int(trained), int(6.4e8), 0)).startswith(advice)


def test_what_the_compiler_says_where_memory_is_short():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.25G) exceeds "
        "available HBM (15.75G).\nAllocations: 99.00G"
    )
    assert out_of_memory(said) == 32.25 * 2**30
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert out_of_memory(used) == 20.5 * 2**30
    assert out_of_memory("INVALID_ARGUMENT: something else, 20.50G of memory") is None
    assert out_of_memory("RESOURCE_EXHAUSTED: out of memory") is None


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"topology": "v9z:2x2"}, BadPlan, "Topology 'v9z:2x2' is unknown; write cpu, a TPU slice"),
        ({"topology": "v5e"}, BadPlan, "Topology 'v5e' is unknown"),
        ({"topology": "h100:0"}, BadPlan, "Topology 'h100:0' is unknown"),
        ({"topology": "h100:16"}, BadPlan, "A host has at most 8 h100; write h100:2x8"),
        ({"topology": "h100:2x2x8"}, BadPlan, "h100:4x8 for 4 hosts of 8; got 3 numbers"),
        ({"rules": "fdsp"}, BadRules, "the nearest is 'fsdp'"),
        ({"mesh": "data=3"}, BadMesh, "needs 3 devices and there are 8"),
        (
            {"model": "unetr-tiny-test", "adapter": "full"},
            BadConfig,
            "no size of pictures to choose; leave out --image-size",
        ),
        ({"global_batch": 12}, BadMesh, "batch of 12 cannot be divided over 8 devices"),
    ],
)
def test_plans_for_what_does_not_exist(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        plan(PlanConfig(**TINY | settings))


@pytest.mark.skipif(not without_libtpu, reason="libtpu is installed")
def test_a_tpu_needs_libtpu():
    with pytest.raises(BadPlan, match=r"pip install 'medvfm-jax\[tpu\]'"):
        devices_of("v5e:2x2")


@pytest.mark.skipif(not without_cuda, reason="a CUDA plugin is installed")
def test_a_gpu_needs_the_cuda_plugin():
    with pytest.raises(BadPlan, match=r"pip install 'medvfm-jax\[cuda\]'"):
        devices_of("h100:8")


@pytest.mark.slow
@pytest.mark.skipif(without_cuda, reason="needs JAX's CUDA plugin (extra [cuda])")
def test_a_plan_for_gpus_that_are_not_here():
    """In a process of its own, like a user's; half of the memory; gradients summed over 4 GPUs of 2 hosts."""
    words = (
        "--model",
        "sam-tiny-test",
        "--adapter",
        "linear",
        "--image-size",
        "32",
        "--topology",
        "h100:2x2",
    )
    done = subprocess.run(
        [sys.executable, "-m", "medvfm_jax.cli.main", "plan", *words, "--json"],
        env=os.environ
        | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["memory"]["fits"]
    assert 0 < found["program"]["kernel_traffic"] < found["program"]["traffic"]  # attention is Triton's
    assert found["memory"]["capacity"] == CHIPS["h100"].hbm // 2
    assert {c["kind"] for c in found["program"]["collectives"]} == {"all-reduce"}
    assert {c["group"] for c in found["program"]["collectives"]} == {4}
    assert found["program"]["unknown_loops"] == 0
    assert found["speed"]["compiler"] is None
    assert 0 < found["speed"]["utilisation"] < 1


@pytest.mark.slow
@pytest.mark.skipif(without_libtpu, reason="needs libtpu (extra [tpu])")
def test_slices_that_are_not_here():
    for topology, count in (("v5e:1x1", 1), ("v5e:16x16", 256), ("v5p:4x4x8", 128), ("v6e:2x2", 4)):
        assert len(devices_of(topology)[0]) == count
    for topology, sentence in (
        ("v5e:2x2x2", "has 2 dimensions, not 3"),
        ("v5e:32x32", "A pod of v5e has 256 chips; 'v5e:32x32' would have 1024"),
        ("v5e:3x3", "libtpu does not know the slice 'v5e:3x3'"),
    ):
        with pytest.raises(BadPlan, match=sentence):
            devices_of(topology)


@pytest.mark.slow
@pytest.mark.skipif(without_libtpu, reason="needs libtpu (extra [tpu])")
def test_a_plan_for_a_slice_that_is_not_here():
    found = plan(PlanConfig(**TINY | {"topology": "v5e:2x2", "mesh": "data=4"}))
    assert found.memory.fits
    assert found.memory.capacity == 16 * 2**30
    assert {c.kind for c in found.program.collectives} == {"all-reduce"}
    assert {c.group for c in found.program.collectives} == {4}
    assert found.program.unknown_loops == 0
    assert found.program.cycles > 0
    assert 0 < found.speed.utilisation < 1
    # Gradients of what trains are summed over devices, in float32 or bfloat16, with a few scalars of metrics.
    payload = sum(c.payload for c in found.program.collectives)
    assert 2 * found.trained <= payload <= 4 * found.trained + 1024


@pytest.mark.slow
def test_a_plan_for_this_machine_counts_its_collectives():
    """8 devices: the gradient of what trains is summed once; memory is a positive part of this machine's."""
    found = plan(PlanConfig(**TINY))
    assert found.devices == len(jax.devices()) == 8
    assert found.memory.fits
    assert found.advice is None
    assert 0 < found.memory.arguments < found.memory.peak < found.memory.capacity
    assert found.speed is None
    payload = sum(c.payload for c in found.program.collectives if c.kind == "all-reduce")
    assert 4 * found.trained <= payload <= 4 * found.trained + 1024
    assert found.flops.model > 0


@pytest.mark.slow
def test_divided_weights_travel_and_images_stay(monkeypatch):
    """FSDP: what devices exchange hardly depends on how many images they work on."""
    monkeypatch.setattr(step_plan, "RULES", {"fsdp": lambda: rules.fsdp(least=0)})
    # each part of a batch gathers the weights anew
    settings = TINY | {"adapter": "full", "rules": "fsdp", "image_size": 64, "accumulate": 1}
    few, many = (plan(PlanConfig(**settings | {"global_batch": images})).program for images in (8, 32))
    sent = [sum(c.sent for c in program.collectives) for program in (few, many)]
    assert sent[1] < 1.3 * sent[0]
    assert not any(c.kind == "all-to-all" for c in many.collectives)
