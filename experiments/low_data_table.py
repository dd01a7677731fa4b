"""The main table: how well do 16 labelled images do, by adaptation and by training from scratch?

Rows: LiteMedSAM as it is with boxes from the reference; LiteMedSAM adapted with the ``samed`` preset (prompt-free) on
16 patients and on all; a U-Net from scratch on the same patients with the same number of steps and images per step.
Every row is scored on the same test patients, never used before.  The recipes beside this file say which data.
"""

import dataclasses
import json
import time
from pathlib import Path

from medvfm_jax.train import AdaptConfig, EvaluateConfig, adapt, evaluate

ALL = None


@dataclasses.dataclass(frozen=True)
class Table:
    """One table; ``test_cases`` caps the test patients so that it ends in the stated budget."""

    data: str
    out: Path
    few: int = 16
    steps: int = 120
    batch_size: int = 2
    test_cases: int | None = None
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    validate_every: int = 60
    validation_images: int = 24
    seed: int = 0

    def rows(self) -> list[tuple[str, AdaptConfig | EvaluateConfig]]:
        """Name -> what to run."""
        split = {"data": self.data, "seed": self.seed}
        split |= {"test_fraction": self.test_fraction, "val_fraction": self.val_fraction}
        training = split | {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "validate_every": self.validate_every,
            "validation_images": self.validation_images,
            "resume": True,
        }
        zero_shot = EvaluateConfig(
            model="lite-medsam", prompt="box", cases=self.test_cases, out=self.out / "zero_shot", **split
        )
        rows: list[tuple[str, AdaptConfig | EvaluateConfig]] = [("zero-shot, boxes given", zero_shot)]
        for model, adapter, title in [("lite-medsam", "samed", "samed"), ("unet", "full", "U-Net from scratch")]:
            for cases in (self.few, ALL):
                amount = f"{cases} patients" if cases else "all patients"
                out = self.out / f"{adapter if model != 'unet' else 'unet'}_{cases or 'all'}"
                run = AdaptConfig(model=model, adapter=adapter, train_cases=cases, out=out, **training)
                rows.append((f"{title}, {amount}", run))
        return rows


def run(table: Table) -> list[dict]:
    """Run every row that has no scores yet, and write ``table.json`` after each."""
    table.out.mkdir(parents=True, exist_ok=True)
    results = []
    for name, config in table.rows():
        started = time.perf_counter()
        if isinstance(config, AdaptConfig):
            target = config.out / "scores.json"
            if not target.exists():
                adapt(config)
                evaluate(EvaluateConfig(run=config.out, cases=table.test_cases))
        else:
            target = config.out / "scores.json"
            if not target.exists():
                evaluate(dataclasses.replace(config, out=target))
        scores = json.loads(target.read_text())
        row = {"row": name, "n": scores["n_cases"], "minutes": round((time.perf_counter() - started) / 60, 1)}
        row["dice"] = [s for s in scores["summary"] if s["metric"] == "dice"]
        results.append(row)
        (table.out / "table.json").write_text(json.dumps(results, indent=1))
        print(_line(row), flush=True)
    return results


def _line(row: dict) -> str:
    dice = "; ".join(f"{s['label']} {s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in row["dice"])
    return f"{row['row']:32s} n={row['n']:3d}  Dice {dice}  ({row['minutes']} min)"
