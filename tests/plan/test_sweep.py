"""Which ways of running a step are tried, in which order, which are skipped and why, and which is the best."""

import dataclasses

import jax
import pytest

from medvfm_jax.models.errors import UnknownModel
from medvfm_jax.parallel.errors import BadRules
from medvfm_jax.plan import sweep as module
from medvfm_jax.plan.abstract_training import KEEP
from medvfm_jax.plan.chips import CHIPS
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.flops import Flops
from medvfm_jax.plan.step_plan import Memory, Plan, Speed
from medvfm_jax.plan.sweep import candidates, ranked, sweep, words
from medvfm_jax.settings.plan import PlanConfig

TINY = PlanConfig(
    model="sam-tiny-test",
    adapter="linear",
    image_size=32,
    global_batch=8,
    prompts_per_image=0,
    embeddings="off",
)


def ways(config, devices):
    return [(c.mesh, c.rules, c.accumulate, c.keep) for c in candidates(config, devices)]


def test_meshes_divide_the_batch_and_the_heads_and_a_model_axis_comes_with_tensor_alone():
    found = ways(TINY, 8)  # sam-tiny-test has two heads
    assert {(mesh, rules) for mesh, rules, *_ in found} == {
        ("data=8", "replicated"), ("data=8", "fsdp"), ("data=4,model=2", "tensor"),
    }  # fmt: skip
    # One image per device on data=8; on data=4 a device has two, so two parts are possible.
    assert {parts for mesh, _, parts, _ in found if mesh == "data=8"} == {1}
    assert {parts for mesh, _, parts, _ in found if mesh == "data=4,model=2"} == {1, 2}
    assert len(found) == len(set(found)) == 12


def test_the_order_is_few_parts_then_recomputing_then_no_model_axis_then_whole_parameters():
    found = ways(dataclasses.replace(TINY, global_batch=16), 8)
    assert found[:9] == [
        (mesh, rules, 1, keep)
        for keep in ("nothing", "products", "everything")
        for mesh, rules in (("data=8", "replicated"), ("data=8", "fsdp"), ("data=4,model=2", "tensor"))
    ]
    assert [parts for _, _, parts, _ in found] == sorted(parts for _, _, parts, _ in found)
    assert max(parts for _, _, parts, _ in found) == 4


def test_a_model_without_blocks_has_no_model_axis_and_keeps_everything_as_adapt_demands():
    found = ways(PlanConfig(model="lite-tiny-test", global_batch=12), 2)
    assert found == [
        ("data=2", "replicated", 1, "everything"), ("data=2", "fsdp", 1, "everything"),
        ("data=2", "replicated", 2, "everything"), ("data=2", "fsdp", 2, "everything"),
    ]  # fmt: skip
    assert ways(PlanConfig(model="lite-tiny-test", global_batch=1), 1) == [
        ("data=1", "replicated", 1, "everything")
    ]


def test_devices_that_no_mesh_can_use_are_refused():
    with pytest.raises(BadPlan, match=r"No mesh of 8 devices suits 3 images .* multiple of 8"):
        candidates(dataclasses.replace(TINY, global_batch=3), 8)


def made(config, *, gib, step=None):
    """A plan that needs so much memory of 10 GiB and so many seconds."""
    speed = None if step is None else Speed(step, None, 0.0, 0.0, step, 0.5, 0.0, step, 0.5)
    memory = Memory(round(gib * 2**30), 10 * 2**30, gib <= 10, 1, 1)
    return Plan(config, 8, {}, 1, 2, memory, Flops(1, 1), None, speed, None, 0.0)


class Compiler:
    """Gives memory and time by rule instead of compiling; remembers what it was asked."""

    def __init__(self, gib, step=None):
        self.gib, self.step, self.asked = gib, step, []

    def __call__(self, config):
        self.asked.append(config)
        step = None if self.step is None else self.step(config)
        return made(config, gib=self.gib(config), step=step)


@pytest.fixture
def slice_of_eight(monkeypatch):
    monkeypatch.setattr(module, "devices_of", lambda topology: (jax.devices(), CHIPS["v5e"]))


@pytest.mark.slow
def test_what_cannot_win_is_not_compiled(slice_of_eight):
    """Replicated does not fit in one part, fsdp does; products need a fifth more, everything four times."""
    config = dataclasses.replace(TINY, global_batch=32)

    def gib(c):
        return (
            {"replicated": 16, "fsdp": 8, "tensor": 6}[c.rules]
            / c.accumulate
            * (1, 1.2, 4)[KEEP.index(c.keep)]
        )

    compiler = Compiler(gib, step=lambda c: c.accumulate)
    *outcomes, unrolled = sweep(config, 99, compiler)
    assert not unrolled.config.scan_blocks
    assert all(o.config.scan_blocks for o in outcomes)
    outcomes = {(o.config.rules, o.config.accumulate, o.config.keep): o for o in outcomes}
    assert outcomes["replicated", 1, "nothing"].plan.memory.fits is False
    assert "even with --keep nothing" in outcomes["replicated", 1, "everything"].reason
    assert outcomes["replicated", 2, "nothing"].plan.memory.fits
    assert "fits in 1 part, which is faster" in outcomes["fsdp", 2, "nothing"].reason
    assert outcomes["fsdp", 1, "everything"].plan.memory.fits is False
    assert outcomes["fsdp", 2, "everything"].plan.memory.fits is False
    assert outcomes["fsdp", 4, "everything"].plan.memory.fits
    assert sum(o.plan is not None for o in outcomes.values()) + 1 == len(compiler.asked)


@pytest.mark.slow
def test_a_cpu_has_no_time_so_more_parts_are_compiled_even_where_fewer_fit():
    compiler = Compiler(gib=lambda c: 8 / c.accumulate)
    outcomes = list(sweep(dataclasses.replace(TINY, global_batch=16), 99, compiler))
    assert all(o.plan is not None for o in outcomes)
    best = ranked(outcomes)[0].config
    assert best.accumulate == 4


def test_at_most_so_many_are_compiled_and_the_others_are_named(slice_of_eight):
    compiler = Compiler(gib=lambda c: 1, step=lambda c: 1)
    outcomes = list(sweep(TINY, 2, compiler))
    assert [asked.scan_blocks for asked in compiler.asked] == [
        True,
        True,
        False,
    ]  # the best once more, unrolled
    assert compiler.asked[2] == dataclasses.replace(ranked(outcomes)[0].config, scan_blocks=False)
    assert len(outcomes) == len(candidates(TINY, 8)) + 1
    assert [o.plan is not None for o in outcomes[:3]] == [True, True, False]
    assert outcomes[2].reason == "2 programs are compiled already (--most)"
    with pytest.raises(BadPlan, match="most is 0"):
        next(sweep(TINY, 0, compiler))


def test_a_refused_candidate_costs_nothing_and_the_sweep_goes_on(slice_of_eight):
    def refuses(config):
        if config.rules == "replicated":
            raise BadRules("This rule\n divides nothing.")
        if config.rules == "fsdp":
            raise jax.errors.JaxRuntimeError("INTERNAL: no such layout\nstack")
        return made(config, gib=1, step=1)

    outcomes = list(sweep(TINY, 2, refuses))
    assert outcomes[0].reason == "This rule divides nothing."
    assert outcomes[1].reason == "the compiler refuses: INTERNAL: no such layout"
    assert (
        outcomes[2].plan is not None
    )  # the second that was compiled: the first refusal came before the compiler
    assert "2 programs" in outcomes[3].reason


def test_settings_that_no_candidate_could_have_end_the_sweep():
    with pytest.raises(UnknownModel, match="There is no model 'sam-x'"):
        next(sweep(PlanConfig(model="sam-x"), 1))
    with pytest.raises(BadPlan, match="dtype is int8"):
        next(sweep(dataclasses.replace(TINY, dtype="int8"), 1))


def test_the_best_fits_and_is_fast_and_ties_go_to_the_smaller():
    given = [(12, 1.0), (8, 3.0), (9, 2.0), (4, 2.0), (11, 0.5)]
    outcomes = [module.Outcome(TINY, made(TINY, gib=gib, step=step)) for gib, step in given]
    outcomes.append(module.Outcome(TINY, None, "refused"))
    found = [(p.memory.peak / 2**30, p.speed.step) for p in ranked(outcomes)]
    assert found == [(4, 2.0), (9, 2.0), (8, 3.0), (11, 0.5), (12, 1.0)]


def test_words_compile_the_same_candidate_again():
    config = PlanConfig(
        model="sam-h", set=("lora.rank=8", "lora.at=a b"), mesh="data=4,model=2", rules="tensor",
        keep="products", prompts_per_image=2,
    )  # fmt: skip
    import shlex

    from medvfm_jax.cli.arguments import parse
    from medvfm_jax.cli.options.plan import PlanArgs

    parsed = parse(PlanArgs, shlex.split(words(config)), "medvfm plan")
    assert all(getattr(parsed, f.name) == getattr(config, f.name) for f in dataclasses.fields(PlanConfig))


@pytest.mark.slow
def test_a_real_sweep_over_eight_devices_of_this_machine():
    outcomes = list(sweep(TINY, 2))
    replicated, divided = (o.plan for o in outcomes[:2])
    assert (replicated.config.rules, divided.config.rules) == ("replicated", "fsdp")
    assert replicated.memory.fits
    assert divided.mesh == {"clients": 1, "replica": 1, "data": 8, "model": 1}
    peaks = [outcome.plan.memory.peak for outcome in outcomes if outcome.plan is not None]
    assert ranked(outcomes)[0].memory.peak == min(peaks)  # the last, with every block on its own, among them
