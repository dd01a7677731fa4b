"""What each context block adds to LoRA: LiteMedSAM on nuclei in microscopy images, few labels, the same boxes.

python -m experiments.context_blocks --data DATA/dsb2018 --out runs/context_blocks

Row ``lora_few`` is LoRA alone; every other row is `medvfm adapt --adapter lora_context --set context.block=NAME`, with
"-" in the row for "_" in the block's name. A block that takes a pyramid reads the encoder's stages (`context.levels`).
The table has Dice with its interval, trained parameters and milliseconds per step of each row, and the paired
difference to LoRA alone. Rows that are there are kept, so it can be stopped, started again, and made row by row.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.few_labels import Plan, run
from medvfm_jax.adapters.context_blocks import BLOCKS

RESULTS = Path(__file__).parent / "results" / "context_blocks.json"
ALONE = "lora_few"
ROWS = {name: f"{name.replace('_', '-')}_few" for name in BLOCKS}


@dataclasses.dataclass(frozen=True)
class ContextBlocks(Plan):
    """An image counts as a patient."""

    out: Path = Path("runs/context_blocks")
    steps: int = 40
    cases: int | None = 24
    rows: tuple[str, ...] = (ALONE, *ROWS.values())
    metrics: tuple[str, ...] = ("dice",)
    width: int = 64
    """Inner channels of every block."""

    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """LoRA alone, and with each block."""
        lora = {"model": "lite-medsam", "adapter": "lora", "prompt": "box"}
        with_block = {
            row.removesuffix("_few"): lora
            | {"adapter": "lora_context", "set": (f"context.block={name}", f"context.width={self.width}")}
            for name, row in ROWS.items()
        }
        return {"lora": lora, **with_block}

    def pairs(self) -> Sequence[tuple[str, str]]:
        """Each block against LoRA alone."""
        return [(ALONE, row) for row in ROWS.values()]


def summary(table: Mapping[str, Any]) -> str:
    """Trained parameters and milliseconds per step beside the difference to LoRA alone, as a table in Markdown."""
    lines = ["| row | trained | ms per step | Dice minus LoRA alone |", "|---|---|---|---|"]
    for name, row in table["rows"].items():
        found = table["paired_dice"].get(f"{name} minus {ALONE}")
        gain = f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})" if found else "-"
        lines.append(f"| {name} | {row['trained']['parameters']:,} | {row['ms_per_step']:,.0f} | {gain} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(tyro.cli(ContextBlocks), RESULTS)
    print(summary(json.loads(RESULTS.read_text(encoding="utf-8"))))
