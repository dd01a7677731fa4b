"""A run directory as `adapt` and `evaluate` leave it, made of drawn numbers: small, exact, no model."""

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from medvfm_jax import metrics
from medvfm_jax.report import draw_overlay

SITES = ("north", "south")


def disc(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def picture(size: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, reference and a prediction that is off by a few pixels."""
    reference, prediction = disc(size, (44, 52), 17), disc(size, (47, 50), 16)
    noise = np.random.default_rng(seed).normal(0, 12, (size, size))
    return 60 + 90 * reference + noise, reference, prediction


def case_rows(shift: float = 0.0, patients: int = 12, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(patients):
        for label, base in (("anterior", 0.86), ("posterior", 0.83)):
            dice = float(np.clip(base + shift + rng.normal(0, 0.04), 0, 1))
            rows.append(
                {
                    "case": f"case_{k:03d}", "patient": f"patient_{k:03d}", "site": SITES[k % 2], "label": label,
                    "dice": dice, "iou": dice / (2 - dice), "hd95": 4 * (1 - dice) + 0.5, "assd": 2 * (1 - dice),
                    "nsd": min(1.0, dice + 0.1), "volume_reference": 1200.0 + k, "volume_prediction": 1150.0 + k,
                    "unit": "mm", "empty": None,
                }
            )  # fmt: skip
    rows[1] |= {"empty": "prediction", "dice": 0.0, "iou": 0.0}
    return rows


def scores(name: str = "lite-medsam", shift: float = 0.0, **changes) -> dict:
    rows = case_rows(shift)
    record = {
        "format": 1, "metric_profile": "strict", "unit": "patient", "split": "test", "model": name,
        "prompt": "none", "flips": False, **metrics.summarise(rows), "cases": rows, "overlays": [],
        "provenance": {
            "command": "medvfm evaluate --run runs/samed", "seed": 0, "weights_sha256": "79d8c9" + "0" * 58,
            "data_sha256": "ab" * 32, "versions": {"python": "3.11.2", "jax": "0.10.2"},
            "trained": {"parameters": 4_200_123, "total": 9_790_000, "bytes": 16_812_345},
            "device": "cpu (2 cores, x86_64)", "time": "2026-01-02T03:04:05+00:00",
        },
    }  # fmt: skip
    return record | changes


def write_run(folder: Path, shift: float = 0.0, **changes) -> Path:
    """Run directory with settings, curves, scores and three overlays per label."""
    (folder / "overlays").mkdir(parents=True)
    config = {
        "data": "data/Dataset004_Hippocampus", "model": "lite-medsam", "adapter": "samed", "steps": 200,
        "batch_size": 4, "seed": 0, "dtype": "float32", "train_cases": 16,
        "resolved": {"prompt": "none", "learning_rate": 1e-3, "objective": "samed"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, 201):
            loss = 0.15 + 0.8 * math.exp(-step / 40) + abs(rng.normal(0, 0.04))
            file.write(json.dumps({"step": step, "loss": loss, "images_per_s": 9.5, "lr": 1e-3}) + "\n")
            if step % 25 == 0:
                file.write(json.dumps({"step": step, "val_dice": 0.85 - 0.5 * math.exp(-step / 50)}) + "\n")
    record = scores(shift=shift, **changes)
    for label in ("anterior", "posterior"):
        for k, rank in enumerate(("best", "median", "worst")):
            name = f"{label}_{rank}.png"
            (folder / "overlays" / name).write_bytes(draw_overlay(*picture(seed=k)))
            record["overlays"].append(
                {"case": f"case_{k:03d}", "label": label, "rank": rank, "dice": 0.9 - 0.1 * k, "png": name}
            )
    (folder / "scores.json").write_text(json.dumps(record))
    return folder


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
