r"""How long is a training step, how much memory does it take, and was the plan right?

python -m experiments.device.lora_step --models sam-b sam-l sam-h --batch 8

The program is the one that `medvfm plan` compiles for a card that is not here: the plan is made first, in a process of
its own, then the step is compiled and run on the card that is. A device tells the most it ever held in a process, so
the memory of a model after one that needed more is not known: give models from small to large.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.device.measure import (
    card,
    finish,
    in_turns,
    made_up,
    need_accelerator,
    one_of,
    peak_bytes,
    share_of_peak,
    spread,
)
from medvfm_jax.parallel import RULES, batch_shardings, make_mesh, param_shardings, state_shardings
from medvfm_jax.plan.abstract_training import abstract_training, lower
from medvfm_jax.plan.step_plan import count_flops
from medvfm_jax.settings.plan import PlanConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings."""

    models: tuple[str, ...] = ("sam-b", "sam-l", "sam-h")
    """Models to adapt."""
    adapter: str = "samed"
    """What trains."""
    batch: int = 8
    """Images of a step."""
    accumulate: int = 1
    """Parts a batch is cut into."""
    dtype: str = "bfloat16"
    """Number format of the computation."""
    keep: str = "products"
    """What is kept for the backward pass."""
    image_size: int | None = None
    """Pixels along one side; by default the model's."""
    rounds: int = 10
    """Steps."""
    out: Path | None = None
    """File of the result; by default in experiments/results, with the card's name."""


def run(plan: Plan) -> dict[str, Any]:
    """Plan, measure, compare, write."""
    about, chip = card()
    rows: dict[str, Any] = {}
    for name in plan.models:
        config = PlanConfig(
            model=name, adapter=plan.adapter, global_batch=plan.batch, accumulate=plan.accumulate, dtype=plan.dtype,
            keep=plan.keep, image_size=plan.image_size,
            topology=one_of(chip, about["plan_calls_it"]),
        )  # fmt: skip
        predicted = planned(config)
        rows[name] = measured(config, plan.rounds, chip) | {"predicted": predicted}
        if predicted["step_seconds"]:
            rows[name]["seconds_over_predicted"] = rows[name]["seconds"]["median"] / predicted["step_seconds"]
        if rows[name]["peak_bytes"]:
            rows[name]["bytes_over_predicted"] = rows[name]["peak_bytes"] / predicted["bytes"]
    record = {"card": about, "steps": rows}
    finish("lora_step", record, plan.out)
    return record


def planned(config: PlanConfig) -> dict[str, Any]:
    """What `medvfm plan` says, in a process that does not see the card."""
    usual = PlanConfig()
    words = [
        word
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != getattr(usual, field.name) or field.name == "topology"
        for word in (f"--{field.name.replace('_', '-')}", str(value))
    ]
    # a run on a TPU has no kernels unless it is told to, a plan has them unless it is told not to
    kernels = os.environ.get("MEDVFM_KERNELS") or ("0" if jax.default_backend() == "tpu" else "1")
    done = subprocess.run(
        [sys.executable, "-m", "medvfm_jax.cli.main", "plan", "--json", *words],
        capture_output=True, text=True, check=False, env={**os.environ, "XLA_FLAGS": "", "MEDVFM_KERNELS": kernels},
    )  # fmt: skip
    if not done.stdout.strip():  # exit code 1 is also that of a step that does not fit
        sys.exit(f"the plan failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout)
    speed = found["speed"]
    return {
        "bytes": found["memory"]["peak"],
        "fits": found["memory"]["fits"],
        "step_seconds": None if speed is None else speed["step"],
        "utilisation": None if speed is None else speed["utilisation"],
    }


def measured(config: PlanConfig, rounds: int, chip: Any) -> dict[str, Any]:
    """The same program on the first device, with made-up numbers."""
    held_before = peak_bytes()
    training, mesh = abstract_training(config), make_mesh("data=1", jax.devices()[:1])
    rules = RULES[config.rules]()
    compiled = lower(training, rules, mesh).compile()
    where = (
        param_shardings(rules, mesh, training.params),
        state_shardings(rules, mesh, training.state, training.optimizer),
        batch_shardings(mesh, training.batch),
    )
    arguments = made_up((training.params, training.state, training.batch))
    params, state, batch = jax.tree.map(jax.device_put, arguments, where)

    def call() -> Any:
        nonlocal state  # a step consumes its state
        state, metrics = compiled(params, state, batch)
        return metrics

    seconds = spread(in_turns([call], rounds)[0])
    flop, held = count_flops(training).model, peak_bytes()
    return {
        "seconds": seconds,
        "images_per_second": config.global_batch / seconds["median"],
        "share_of_peak": share_of_peak(flop, seconds["median"], chip),
        "model_flop": flop,
        "peak_bytes": None if held == held_before else held,
    }


if __name__ == "__main__":
    plan = tyro.cli(Plan)
    need_accelerator()
    run(plan)
