r"""Which rank suffices: the energy of the gradient in its first directions beside the Dice of LoRA of each rank.

python -m experiments.rank_curve --data DATA/dsb2018 --out runs/rank_curve

LoRA in the attention of LiteMedSAM's decoder, nuclei with boxes.  The prediction: gradients of a few training images
with respect to the kernels that LoRA changes (`medvfm analyze placement`), and of each rank the share of the squared
norm of their mean that its best approximation holds, over all kernels together.  The measured side is a grid of
`medvfm analyze ablate`, one cell for each rank, the seeds of a cell as one program; what is in ``out`` is kept.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import AdaptConfig
from medvfm_jax.settings.analyze import AblateConfig
from medvfm_jax.theory import analyze_ablate, captured_energy, energy_rank, rank_agreement, stable_rank
from medvfm_jax.theory.runs.site_losses import site_losses
from medvfm_jax.train.training import resolve

RESULTS = Path(__file__).parent / "results" / "rank_curve.json"
AT = r"mask_decoder/transformer/.*attn.*/(q|v)_proj"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: str
    """Folder dsb2018."""
    out: Path = Path("runs/rank_curve")
    """Where the grid and its runs go."""
    model: str = "lite-medsam"
    """Model with a mask decoder."""
    at: str = AT
    """Where LoRA is."""
    ranks: tuple[int, ...] = (1, 4, 16, 2, 8)
    """Of LoRA, in the order in which they are trained; the scale is 1."""
    seeds: tuple[int, ...] = (0, 1)
    """Of each."""
    steps: int = 20
    """Of each run, of one image."""
    rate: float = 3e-3
    """Learning rate of AdamW."""
    cases: int = 3
    """Training images whose gradients are taken."""
    test_cases: int = 6
    """Test images that are scored."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Train the grid, take the gradients, then write the comparison as JSON."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    start = time.process_time()
    gradients = mean_gradients(plan, say)
    predicted = spectrum_of(gradients, max(plan.ranks))
    spent = time.process_time() - start
    say(f"{predicted}")
    path = plan.out / "grid.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(grid_of(plan)), encoding="utf-8")
    ablation = analyze_ablate(
        AblateConfig(grid=path, out=plan.out / "runs", cases=2, test_cases=plan.test_cases), say
    )
    measured = {
        rank: {"dice": cell.dice, "mean": cell.mean, "seconds": cell.training_seconds}
        for rank, cell in zip(plan.ranks, ablation.cells)
        if cell.dice
    }
    table = {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "out")},
        "predicted": predicted,
        "measured": {str(rank): measured[rank] for rank in sorted(measured)},
        "failed": list(ablation.failed),
        "agreement": rank_agreement(
            [predicted["captured"][rank - 1] for rank in measured], [one["mean"] for one in measured.values()]
        )._asdict(),
        "processor_seconds": {"prediction": spent, "all": time.process_time() - start},
        "versions": versions(),
        "device": device(),
    }
    run_directory.write_json(results, run_directory.finite(table))
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def grid_of(plan: Plan) -> dict[str, Any]:
    """The grid as `analyze ablate` reads it."""
    common = (f"lora.at={plan.at}", "lora.slices=none")
    return {
        "settings": {
            "data": plan.data, "model": plan.model, "adapter": "lora", "prompt": "box", "prompts_per_image": 2,
            "steps": plan.steps, "batch_size": 1, "augment": "none", "learning_rate": plan.rate, "embeddings": "disk",
        },
        "vary": {"set": [[*common, f"lora.rank={r}", f"lora.alpha={r}"] for r in plan.ranks]},
        "seeds": list(plan.seeds),
        "tools": ["size"],
    }  # fmt: skip


def mean_gradients(plan: Plan, say: Callable[[str], None]) -> dict[str, NDArray]:
    """Path of a kernel that LoRA changes -> the mean gradient of the loss on a few training images, at the start."""
    config = AdaptConfig(
        data=plan.data, model=plan.model, adapter="decoder", prompt="box", prompts_per_image=2, batch_size=1,
        augment="none",
    )  # fmt: skip
    with ProgressDisplay(title="rank_curve") as display:
        resolved = resolve(config, display=display)
    loader = resolved.data.loader("none")
    batches = {"all": [next(loader) for _ in range(plan.cases)]}
    gradient = site_losses(resolved, batches, say).value_and_gradient
    found = [gradient(resolved.assembled.delta, batch)[1] for batch in batches["all"]]
    mean = jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)) / len(leaves), *found)
    return {
        f"{module}/kernel": arrays["kernel"]
        for part in mean.values()
        for module, arrays in part.items()
        if "kernel" in arrays and re.fullmatch(plan.at, module)
    }


def spectrum_of(gradients: Mapping[str, NDArray], most: int) -> dict[str, Any]:
    """Share of the squared norm that each rank holds over all kernels, and ranks of the single ones."""
    values = {path: jnp.linalg.svd(jnp.asarray(g), compute_uv=False) for path, g in gradients.items()}
    energy = np.array([float((v**2).sum()) for v in values.values()])
    held = np.array(
        [np.resize(np.append(np.asarray(captured_energy(v)), np.ones(most)), most) for v in values.values()]
    )
    captured = (energy[:, None] * held).sum(0) / energy.sum()
    return {
        "kernels": len(values),
        "captured": captured.tolist(),
        "rank_for_90": int(1 + (captured < 0.9).sum()),
        "rank_for_99": int(1 + (captured < 0.99).sum()),
        "energy_rank_median": float(np.median([int(energy_rank(v)) for v in values.values()])),
        "stable_rank_median": float(np.median([float(stable_rank(v)) for v in values.values()])),
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as text."""
    said, seeds = table["predicted"], table["plan"]["seeds"]
    lines = [f"| rank | energy held | mean Dice | {' | '.join(f'seed {s}' for s in seeds)} |"]
    lines.append("|---" * (3 + len(seeds)) + "|")
    for rank, one in table["measured"].items():
        dice = " | ".join(f"{value:.4f}" for value in one["dice"].values())
        lines.append(
            f"| {rank} | {100 * said['captured'][int(rank) - 1]:.1f} % | {one['mean']:.4f} | {dice} |"
        )
    found, spent = table["agreement"], table["processor_seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"Nine tenths of the energy in rank {said['rank_for_90']}, 99 % in {said['rank_for_99']}; of one kernel "
            f"(median) nine tenths in {said['energy_rank_median']:g}, stable rank {said['stable_rank_median']:.2f}. "
            f"Spearman {found['rho']:+.2f} (p {found['p']:.2f}, n {found['n']}). Processor time: prediction "
            f"{spent['prediction']:.0f} s, all {spent['all']:.0f} s. Failed: {len(table['failed'])}.",
        ]
    )


if __name__ == "__main__":
    run(tyro.cli(Plan))
