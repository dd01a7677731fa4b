"""`medvfm plan`: the same plan for people and for programs, without weights; what does not exist is refused."""

import dataclasses

import pytest

import medvfm_jax.cli.plan as command
from medvfm_jax.plan.flops import Flops
from medvfm_jax.plan.hlo import Collective, Hotspot, Program
from medvfm_jax.plan.step_plan import Memory, Plan, Speed
from medvfm_jax.plan.sweep import Outcome
from medvfm_jax.settings.plan import CohortPlanConfig, PlanConfig

FITS = Plan(
    PlanConfig(model="sam-h", topology="v5e:16x16", global_batch=1024, accumulate=1),
    devices=256,
    mesh={"clients": 1, "replica": 1, "data": 256, "model": 1},
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
    speed=Speed(0.2, 0.3, 0.05, 0.1, 0.4, 0.5, 0.02, 0.5, 0.4),
    advice=None,
    compile_seconds=61.0,
)
TOO_LARGE = Plan(
    PlanConfig(model="sam-h", topology="v5e:16x16", keep="everything", accumulate=1),
    devices=256,
    mesh={"clients": 1, "replica": 1, "data": 256, "model": 1},
    trained=4_000_000,
    total=640_000_000,
    memory=Memory(40 * 2**30, 16 * 2**30, False),
    flops=Flops(10**15, 10**15),
    program=None,
    speed=None,
    advice="--keep products: everything is kept",
    compile_seconds=61.0,
)


SAM_H = ("plan", "--model", "sam-h", "--topology", "v5e:16x16", "--global-batch", 1024)


def test_a_plan_in_words_and_as_json(medvfm, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "plan", lambda config: asked.append(config) or FITS)
    words = (*SAM_H, "--set", "lora.rank=8")
    text = medvfm(*words).out
    for part in (
        "256 (data=256), 1024 images per step",
        "12.00 GiB of 16.00 GiB: arguments 3.00 GiB, temporaries 8.00 GiB",
        "1,000.00 TFLOP per step; executed with recomputation 1,300.00 TFLOP",
        "7 among 256 devices, 16.00 MiB payload, 32.00 MiB sent per device",
        "400.0 ms: roofline 200.0 ms, compiler's cycles 300.0 ms and kernels 50.0 ms",
        "collectives 100.0 ms, of it latency 20.0 ms",
        "60.0 ms image_encoder/attn/add, 4.00 GiB",
        "40 to 50 % of peak, 2,560 images/s: attention kernels at 33 to 100 % of their bound",
        "a run has them with MEDVFM_KERNELS=1 alone",
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


def test_an_estimate_says_what_it_assumes(medvfm, monkeypatch):
    """A GPU's compiler counts no cycles, so that its figure is a bound; a TPU's without kernels is no range."""
    found = dataclasses.replace(FITS.speed, slow_step=FITS.speed.step)
    for speed, words in (
        (
            dataclasses.replace(found, compiler=None),
            "at most 50 % of peak, 2,560 images/s: products, memory and links",
        ),
        (found, "50 % of peak, 2,560 images/s: the compiler's own cycles"),
    ):
        monkeypatch.setattr(
            command, "plan", lambda config, speed=speed: dataclasses.replace(FITS, speed=speed)
        )
        assert words in medvfm(*SAM_H).out


def test_a_round_of_a_cohort(medvfm, monkeypatch):
    asked = []
    config = CohortPlanConfig("sam-b", topology="v5e:16x16", global_batch=1024, clients=512, local_steps=5)
    found = dataclasses.replace(FITS, config=config)
    monkeypatch.setattr(command, "plan_cohort", lambda config: asked.append(config) or found)
    words = ("--topology", "v5e:16x16", "--global-batch", 1024, "--clients", 512, "--local-steps", 5)
    text = medvfm("plan", *words).out
    assert asked == [config]
    for part in (
        "sam-b with samed, 512 clients on v5e:16x16",
        "5120 images per round",
        "1,000.00 TFLOP per round",
        "round (estimate)",
        "12,800 images/s",
    ):
        assert part in text
    assert medvfm("plan", *words, "--json").json["config"]["clients"] == 512


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--local-steps", 5], "say of how many --clients"),
        (["--at-once", 2], "say of how many --clients"),
        (["--clients", 4, "--sweep"], "leave one out"),
    ],
)
def test_options_of_a_round_without_one_are_refused(medvfm, words, sentence):
    result = medvfm("plan", *words)
    assert result.code == 2
    assert sentence in result.err


def test_gathers_that_the_compiler_turned_into_sums_are_said(medvfm, monkeypatch):
    """Also where a few activations are exchanged in another way."""
    config = dataclasses.replace(FITS.config, rules="fsdp", topology="v5e:16x16")
    sums = (Collective("all-reduce", 256, 248, 2**32, 2**33), Collective("all-to-all", 256, 5, 2**21, 2**21))
    note = "--mesh replica=16,data=16 gathers in groups"
    for collectives, said in (
        (sums, True),
        (sums[:1], True),
        ((*sums, Collective("all-gather", 256, 9, 2**20, 2**28)), False),
    ):
        found = dataclasses.replace(
            FITS, config=config, program=dataclasses.replace(FITS.program, collectives=collectives)
        )
        monkeypatch.setattr(command, "plan", lambda asked, found=found: found)
        assert (note in medvfm(*SAM_H, "--rules", "fsdp").out) is said


def test_what_does_not_fit_is_said_with_what_would_help(medvfm, monkeypatch):
    monkeypatch.setattr(command, "plan", lambda config: TOO_LARGE)
    result = medvfm("plan", "--model", "sam-h")
    assert result.code == 1
    assert "40.00 GiB of 16.00 GiB" in result.out
    assert "it does not fit; try --keep products" in result.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "sam-x"], "There is no model 'sam-x'"),
        (["--model", "sam-b", "--topology", "v9:2x2"], "Topology 'v9:2x2' is unknown"),
        (["--model", "sam-b", "--mesh", "dat=2"], "the axis 'dat' does not exist"),
        (["--model", "sam-b", "--rules", "tensr"], "the nearest is 'tensor'"),
        (["--model", "sam-b", "--dtype", "int8"], "dtype is int8"),
    ],
)
def test_what_does_not_exist_is_refused(medvfm, words, sentence):
    result = medvfm("plan", *words)
    assert result.code == 1
    assert sentence in result.err


def swept(config, most, compile_one):
    """The larger one first; one is refused."""
    small = dataclasses.replace(FITS, config=dataclasses.replace(FITS.config, mesh="data=256"))
    large = dataclasses.replace(
        TOO_LARGE, config=dataclasses.replace(TOO_LARGE.config, mesh="data=128,model=2")
    )
    yield Outcome(large.config, large)
    yield Outcome(small.config, small)
    for parts in (2, 4, 8, 16, 32):
        yield Outcome(dataclasses.replace(small.config, accumulate=parts), None, "it fits in 1 part")


def test_a_sweep_ranks_what_fits_first_and_says_what_is_left_out(medvfm, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "sweep", lambda *words: asked.append(words[:2]) or swept(*words))
    words = (*SAM_H, "--sweep", "--most", 3)
    text = medvfm(*words).out
    assert asked == [(PlanConfig("sam-h", topology="v5e:16x16", global_batch=1024), 3)]
    head, _, first, second, *rest = text[text.index("mesh  ") :].splitlines()
    assert head.split()[:3] == ["mesh", "rules", "parts"]
    assert first.split() == [
        "data=256",
        "replicated",
        "1",
        "everything",
        "12.00",
        "yes",
        "400.0",
        "2,560",
        "40-50",
        "%",
    ]
    assert second.split()[:7] == ["data=128,model=2", "replicated", "1", "everything", ">=", "40.00", "no"]
    assert "it fits in 1 part: data=256 replicated, 2 parts, everything kept;" in rest[1]
    assert rest[1].endswith("; and 1 more")
    assert rest[-1].startswith("best (fastest estimated step): medvfm plan --model sam-h")
    assert rest[-1].endswith("--mesh data=256")
    record = medvfm(*words, "--json").json
    assert [p["config"]["mesh"] for p in record["plans"]] == ["data=256", "data=128,model=2"]
    assert record["best"].endswith("--mesh data=256")
    assert [o["config"]["accumulate"] for o in record["others"]] == [2, 4, 8, 16, 32]


def test_a_sweep_in_which_nothing_fits_fails_and_says_what_would_help(medvfm, monkeypatch):
    monkeypatch.setattr(command, "sweep", lambda *words: iter([Outcome(TOO_LARGE.config, TOO_LARGE)]))
    result = medvfm("plan", "--sweep")
    assert result.code == 1
    assert "none of them fits; try --keep products" in result.out


def test_an_interrupted_sweep_shows_what_it_has(medvfm, monkeypatch):
    def interrupted(*words):
        yield Outcome(FITS.config, FITS)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "sweep", interrupted)
    result = medvfm("plan", "--sweep")
    assert result.code == 130
    assert "best (fastest estimated step): medvfm plan --model sam-h" in result.out


@pytest.mark.parametrize(
    "words",
    [
        ["--rules", "fsdp"],
        ["--mesh", "data=1"],
        ["--accumulate", "2"],
        ["--keep", "products"],
    ],
)
def test_what_a_sweep_chooses_cannot_be_given_as_well(medvfm, words):
    medvfm("plan", "--sweep", *words).refused(f"--sweep chooses {words[0]} itself", code=2)


def test_a_sweep_refuses_what_does_not_exist(medvfm):
    result = medvfm("plan", "--sweep", "--model", "sam-x")
    assert result.code == 1
    assert "There is no model 'sam-x'" in result.err
