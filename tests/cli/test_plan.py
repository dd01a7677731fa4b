"""`medvfm plan`: the same plan for people and for programs, without weights; what does not exist is refused."""

import pytest

import medvfm_jax.cli.plan as command
from medvfm_jax.parallel.flops import Flops
from medvfm_jax.parallel.hlo import Collective, Hotspot, Program
from medvfm_jax.parallel.plan import Memory, Plan, PlanConfig, Speed

FITS = Plan(
    PlanConfig(model="sam-h", topology="v5e:16x16", global_batch=1024),
    devices=256,
    mesh={"clients": 1, "data": 256, "model": 1},
    trained=4_000_000,
    total=640_000_000,
    memory=Memory(12 * 2**30, 16 * 2**30, True, 3 * 2**30, 8 * 2**30),
    flops=Flops(10**15, 13 * 10**14),
    program=Program(
        (Collective("all-reduce", 256, 7, 2**24, 2**25),),
        2**33,
        10**9,
        0,
        (Hotspot("image_encoder/attn/add", 2 * 10**8, 2**32),),
    ),
    speed=Speed(0.2, 0.3, 0.05, 0.1, 0.4, 0.5),
    advice=None,
    compile_seconds=61.0,
)
TOO_LARGE = Plan(
    PlanConfig(model="sam-h", topology="v5e:16x16", keep_activations=True),
    devices=256,
    mesh={"clients": 1, "data": 256, "model": 1},
    trained=4_000_000,
    total=640_000_000,
    memory=Memory(40 * 2**30, 16 * 2**30, False),
    flops=Flops(10**15, 10**15),
    program=None,
    speed=None,
    advice="without --keep-activations: they are kept",
    compile_seconds=61.0,
)


def test_a_plan_in_words_and_as_json(medvfm, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "plan", lambda config: asked.append(config) or FITS)
    words = (
        "plan",
        "--model",
        "sam-h",
        "--topology",
        "v5e:16x16",
        "--global-batch",
        1024,
        "--set",
        "lora.rank=8",
    )
    text = medvfm(*words).out
    for part in (
        "256 (data=256), 1024 images per step",
        "12.00 GiB of 16.00 GiB: arguments 3.00 GiB, temporaries 8.00 GiB",
        "1,000.00 TFLOP per step; executed with recomputation 1,300.00 TFLOP",
        "7 among 256 devices, 16.00 MiB payload, 32.00 MiB sent per device",
        "400.0 ms: roofline 200.0 ms, compiler's cycles 300.0 ms and kernels 50.0 ms, collectives 100.0 ms",
        "60.0 ms image_encoder/attn/add, 4.00 GiB",
        "50 % of peak, 2,560 images/s",
        "it fits",
    ):
        assert part in text
    record = medvfm(*words, "--json").json
    assert record["memory"]["peak"] == 12 * 2**30
    assert record["program"]["collectives"][0]["kind"] == "all-reduce"
    assert record["speed"]["utilisation"] == 0.5
    assert (
        asked[0]
        == asked[1]
        == PlanConfig("sam-h", set=("lora.rank=8",), global_batch=1024, topology="v5e:16x16")
    )


def test_what_does_not_fit_is_said_with_what_would_help(medvfm, monkeypatch):
    monkeypatch.setattr(command, "plan", lambda config: TOO_LARGE)
    result = medvfm("plan", "--model", "sam-h")
    assert result.code == 1
    assert "40.00 GiB of 16.00 GiB" in result.out
    assert "it does not fit; try without --keep-activations" in result.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "sam-x"], "There is no model 'sam-x'"),
        (["--model", "sam-b", "--topology", "v9:2x2"], "Topology 'v9:2x2' is unknown"),
        (["--model", "sam-b", "--mesh", "dat=2"], "the axis 'dat' does not exist"),
        (["--model", "sam-b", "--rules", "tensr"], "did you mean tensor"),
        (["--model", "sam-b", "--dtype", "int8"], "dtype is int8"),
    ],
)
def test_what_does_not_exist_is_refused(medvfm, words, sentence):
    result = medvfm("plan", *words)
    assert result.code == 1
    assert sentence in result.err
