r"""What averaging the factors of LoRA apart costs: predicted from the factors, measured on nuclei by site.

python -m experiments.lora_aggregation --data DATA/dsb2018

LiteMedSAM with a frozen encoder, LoRA in the attention of its decoder, boxes.  Part one: the sites of one round train
from a common start, and the same factors are put together by every rule.  Predicted are how far the product lies from
the mean of the clients' products (the norm of the cross term, as a share), and what that distance does to the loss of
held-out images to first order; measured are loss and Dice of the same images, against those of the exact mean.  Part
two: rounds of each algorithm from one start, its mean aggregation error beside the loss and the Dice it ends with.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.federated import Shard, algorithms, gradient_of, make_round
from medvfm_jax.federated.core.lora_aggregation import (
    Factors,
    factors_of,
    fair_correction,
    mean,
    product_norm,
    replace_factors,
    stack,
    truncate,
)
from medvfm_jax.metrics.bootstrap import interval
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import AdaptConfig
from medvfm_jax.theory import rank_agreement
from medvfm_jax.theory.runs.site_losses import site_batches
from medvfm_jax.train.task import make_loss, make_loss_and_overlap
from medvfm_jax.train.training import resolve
from medvfm_jax.types import Batch, Delta

RESULTS = Path(__file__).parent / "results" / "lora_aggregation.json"
AT = r"mask_decoder/transformer/.*attn.*/(q|v)_proj"
ALGORITHMS = ("fedit", "ffa_lora", "lora_fair", "flexlora", "fedex_lora", "flora", "rolora")
RIDGE = 0.01


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: str
    """Folder dsb2018."""
    model: str = "lite-medsam"
    """Model with a mask decoder."""
    at: str = AT
    """Where LoRA is."""
    sites: tuple[str, ...] = ("A_fluo_256x256", "B_histology_256x320", "C_fluo_360x360")
    """Sites, one client each, of equal weight."""
    train: int = 4
    """Images of each site to train on."""
    held_out: int = 4
    """Further images of each site, of its training part, to score."""
    rank: int = 4
    """Of every pair of factors; the scale is 1."""
    steps: tuple[int, ...] = (4, 16)
    """Local steps of the one round, of one image each."""
    rates: tuple[float, ...] = (3e-3, 1e-2)
    """Learning rates of Adam in it."""
    algorithms: tuple[str, ...] = ALGORITHMS
    """Of the second part, the first of which the others are compared with."""
    rounds: int = 5
    """Rounds of each algorithm."""
    local_steps: int = 4
    """Of each round."""
    rate: float = 1e-2
    """Learning rate of Adam in them."""
    seed: int = 0
    """Of the factors, the boxes and the order of images."""


class Problem(NamedTuple):
    """Batches of embeddings by site and functions of a delta.

    loss: (delta, batch) -> ().  score: (delta) -> (losses, Dice) of the held-out images.
    """

    delta: Delta
    train: list[list[Batch]]
    held_out: list[Batch]
    loss: Callable[[Delta, Batch], Any]
    score: Callable[[Delta], tuple[np.ndarray, np.ndarray]]


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Both parts, then the tables as JSON and text."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    start = time.process_time()
    problem = opened(plan, lambda text: console.print(text, markup=False))
    one = one_round(plan, problem, lambda text: console.print(text, markup=False))
    several = {}
    for name in plan.algorithms:
        several[name] = rounds_of(plan, problem, name)
        console.print(name, several[name], markup=False)
    table = {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k != "data"},
        "one_round": one,
        "agreement": agreement_of(one),
        "rounds": compared(several),
        "processor_seconds": time.process_time() - start,
        "versions": versions(),
        "device": device(),
    }
    run_directory.write_json(results, table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def opened(plan: Plan, say: Callable[[str], None]) -> Problem:
    """Images of the sites, encoded once, and a LoRA at its start."""
    config = AdaptConfig(
        data=plan.data, model=plan.model, adapter="lora", prompt="box", prompts_per_image=2, batch_size=1,
        augment="none", seed=plan.seed,
        set=(f"lora.at={plan.at}", "lora.slices=none", f"lora.rank={plan.rank}", f"lora.alpha={plan.rank}"),
    )  # fmt: skip
    with ProgressDisplay(title="lora_aggregation") as display:
        resolved = resolve(config, display=display)
    dataset = resolved.data.source.dataset
    chosen = [e for e in resolved.data.train if dataset.case(e.case).site in plan.sites]
    resolved = resolved._replace(data=resolved.data._replace(train=chosen))
    batches = site_batches(resolved, plan.train + plan.held_out, say)
    adapted, params = resolved.assembled.adapted, resolved.assembled.base.params
    delta = jax.tree.map(jnp.asarray, resolved.assembled.delta)
    encode = jax.jit(jax.vmap(adapted.encode, in_axes=(None, None, 0)))
    sites = [[b._replace(image=encode(params, delta, b.image)) for b in found] for found in batches.values()]
    full, measure = (
        make(adapted, resolved.assembled.objective, cached=True)
        for make in (make_loss, make_loss_and_overlap)
    )

    def loss(delta: Delta, batch: Batch) -> Any:
        return full(params, delta, batch, jax.random.key(0))[0]

    held_out = [batch for found in sites for batch in found[plan.train :]]

    def score(delta: Delta) -> tuple[np.ndarray, np.ndarray]:
        values, dice = [], []
        for batch in held_out:
            value, _, counts = measure(params, delta, batch)
            both = 2 * counts["intersection"] / (counts["predicted"] + counts["reference"])
            values.append(float(value))
            dice.append(float(both[0][np.asarray(counts["reference"][0]) > 0].mean()))
        return np.array(values), np.array(dice)

    return Problem(delta, [found[: plan.train] for found in sites], held_out, loss, score)


def rules(factors: Factors, rank: int) -> dict[str, tuple[Factors, Factors]]:
    """Rule -> (what it makes of the clients' factors, factors of what that lacks of the mean of their products)."""
    weights = jnp.ones(factors.a.shape[0])
    exact, apart = stack(factors, weights), mean(factors, weights)
    fair = Factors(apart.a, apart.b + fair_correction(factors, weights, RIDGE))
    best = truncate(exact, rank)
    return {
        "factors apart (fedit)": (apart, less(exact, apart)),
        "corrected (lora_fair)": (fair, less(exact, fair)),
        "best of the rank (flexlora)": (best, less(exact, best)),
        "exact (fedex_lora, flora)": (exact, less(exact, exact)),
    }


def less(one: Factors, other: Factors) -> Factors:
    """Factors of the difference of two products."""
    return together(one, Factors(-other.a, other.b))


def together(one: Factors, other: Factors) -> Factors:
    """Factors of the sum of two products."""
    return Factors(jnp.concatenate([one.a, other.a], -1), jnp.concatenate([one.b, other.b], -2))


def one_round(plan: Plan, problem: Problem, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of (rate, steps, rule): predicted and measured."""
    step_of = jax.value_and_grad(problem.loss)
    slope = jax.jit(lambda delta, away, batch: tree_dot(jax.grad(problem.loss)(delta, batch), away))
    rows = []
    for rate in plan.rates:
        optimizer = optax.adam(rate)

        @jax.jit
        def step(delta: Delta, state: Any, batch: Batch, optimizer: Any = optimizer) -> Any:
            updates, state = optimizer.update(step_of(delta, batch)[1], state, delta)
            return optax.apply_updates(delta, updates), state

        kept: dict[int, list[Delta]] = {steps: [] for steps in plan.steps}
        for images in problem.train:
            delta, state = problem.delta, optimizer.init(problem.delta)
            for i in range(max(plan.steps)):
                delta, state = step(delta, state, images[i % len(images)])
                if i + 1 in kept:
                    kept[i + 1].append(delta)
        for steps, deltas in kept.items():
            pairs = factors_of(jax.tree.map(lambda *x: jnp.stack(x), *deltas))
            made = {site: rules(f, plan.rank) for site, f in pairs.items()}
            whole = sum(float(product_norm(stack(f, jnp.ones(len(deltas)))) ** 2) for f in pairs.values())
            scored = {}
            for rule in next(iter(made.values())):
                chosen = {site: rules_[rule][0] for site, rules_ in made.items()}
                missing = {site: rules_[rule][1] for site, rules_ in made.items()}
                lost = sum(float(product_norm(f) ** 2) for f in missing.values())
                delta = replace_factors(problem.delta, chosen)
                row = {"rate": rate, "steps": steps, "rule": rule, "missing": (lost / whole) ** 0.5}
                row["loss_predicted"] = float(
                    np.mean([-slope(*_along(delta, missing), b) for b in problem.held_out])
                )
                scored[rule] = problem.score(delta)
                rows.append(row | {"loss": scored[rule][0].mean(), "dice": scored[rule][1].mean()})
            exact = scored["exact (fedex_lora, flora)"]
            for row in rows[-len(scored) :]:
                losses, dice = scored[row["rule"]]
                row["more_loss"] = spread(losses - exact[0])
                row["dice_lost"] = spread(exact[1] - dice)
                say(f"{row}")
    return rows


def tree_dot(one: Delta, other: Delta) -> Any:
    """Sum of products of the numbers of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, one, other)))


def _along(delta: Delta, missing: Mapping[str, Factors]) -> tuple[Delta, Delta]:
    """A delta with room for a product, and the direction that fills it: the product's tall factor at zero."""
    pairs = factors_of(delta)
    room = {site: together(f, missing[site]._replace(b=0 * missing[site].b)) for site, f in pairs.items()}
    away = {
        site: together(Factors(0 * f.a, 0 * f.b), missing[site]._replace(a=0 * missing[site].a))
        for site, f in pairs.items()
    }
    return replace_factors(delta, room), replace_factors(delta, away)


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Mean over images and its 95 % interval, of a difference that may be of either sign."""
    low, high = interval(values, 0, 2000, bounds=(-np.inf, np.inf))
    return {"mean": float(values.mean()), "low": low, "high": high}


def rounds_of(plan: Plan, problem: Problem, name: str) -> dict[str, Any]:
    """Rounds of one algorithm -> its aggregation errors, and losses and Dice of the held-out images at the end."""
    options = {"clients": len(problem.train)} if name in ("fedex_lora", "flora") else {}
    options |= {"ridge": RIDGE} if name == "lora_fair" else {}

    def loss(whole: Any, batch: Batch, key: Any) -> Any:
        del key
        return problem.loss(as_delta(whole), batch)

    algorithm = getattr(algorithms, name)(gradient_of(loss), optax.adam(plan.rate), **options)
    federation = make_round(algorithm, backend="loop")
    errors, first = [], True
    for number in range(plan.rounds):
        shards = [
            [images[(number * plan.local_steps + i) % len(images)] for i in range(plan.local_steps)]
            for images in problem.train
        ]
        rows = [jax.tree.map(lambda *x: np.stack(x), *own) for own in shards]
        data = Shard(jax.tree.map(lambda *x: np.stack(x), *rows), jnp.ones(len(rows)))
        if first:
            server, clients = federation.init(problem.delta, data)
            round_ = jax.jit(federation.round)
            first = False
        everybody, steps = jnp.ones(len(rows), bool), jnp.full(len(rows), plan.local_steps)
        server, clients, metrics = round_(server, clients, data, everybody, steps, jax.random.key(plan.seed))
        errors.append(float(metrics.extra["aggregation_error_relative"]))
    model = algorithm.model(server, jax.tree.map(lambda x: x[0], clients.state))
    losses, dice = problem.score(as_delta(model))
    return {
        "errors": errors,
        "losses": losses.tolist(),
        "dice": dice.tolist(),
        "train_loss": float(metrics.loss),
    }


def as_delta(whole: Any) -> Delta:
    """A delta, or a pair (delta, dense increments of the base), as one delta of more ranks."""
    if not isinstance(whole, tuple):
        return whole
    delta, base = whole
    pairs = factors_of(delta)
    return replace_factors(
        delta, {site: together(f, Factors(base[site], jnp.eye(f.b.shape[-1]))) for site, f in pairs.items()}
    )


def agreement_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How both predictions go with the measured losses and Dice, over the rows that are not exact."""
    chosen = [row for row in rows if not row["rule"].startswith("exact")]
    found = {}
    for tool in ("missing", "loss_predicted"):
        for target in ("more_loss", "dice_lost"):
            agreed = rank_agreement([r[tool] for r in chosen], [r[target]["mean"] for r in chosen])
            found[f"{tool}, {target}"] = agreed._asdict()
    return found


def compared(several: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means of each algorithm, and its paired difference from the first."""
    first = next(iter(several.values()))
    return {
        name: {
            "error": float(np.mean(one["errors"])),
            "errors": one["errors"],
            "loss": float(np.mean(one["losses"])),
            "dice": spread(np.array(one["dice"])),
            "dice_minus_fedit": spread(np.array(one["dice"]) - np.array(first["dice"])),
            "loss_minus_fedit": spread(np.array(one["losses"]) - np.array(first["losses"])),
        }
        for name, one in several.items()
    }


def markdown(table: Mapping[str, Any]) -> str:
    """Both tables as text."""

    def span(found: Mapping[str, float], digits: int = 4) -> str:
        return f"{found['mean']:+.{digits}f} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"

    lines = [
        "| rate | steps | rule | missing | loss, predicted | loss, measured | Dice lost |",
        "|---" * 7 + "|",
    ]
    for row in table["one_round"]:
        if row["rule"].startswith("exact"):
            continue
        lines.append(
            f"| {row['rate']:g} | {row['steps']} | {row['rule']} | {100 * row['missing']:.1f} % | "
            f"{row['loss_predicted']:+.4f} | {span(row['more_loss'])} | {span(row['dice_lost'])} |"
        )
    lines += ["", "| numbers | Spearman | 95 % interval | p |", "|---|---|---|---|"]
    for name, found in table["agreement"].items():
        lines.append(
            f"| {name} | {found['rho']:+.2f} | {found['low']:+.2f} to {found['high']:+.2f} | {found['p']:.3f} |"
        )
    lines += ["", "| algorithm | mean error | loss | Dice | minus fedit |", "|---" * 5 + "|"]
    for name, one in table["rounds"].items():
        lines.append(
            f"| {name} | {100 * one['error']:.1f} % | {one['loss']:.4f} | {one['dice']['mean']:.4f} | "
            f"{span(one['dice_minus_fedit'])} |"
        )
    return "\n".join([*lines, "", f"{table['processor_seconds']:.0f} s of processor time."])


if __name__ == "__main__":
    run(tyro.cli(Plan))
