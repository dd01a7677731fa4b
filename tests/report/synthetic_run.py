"""A run directory as `adapt` and `evaluate` leave it, made of drawn numbers: small, exact, no model.

test_real_run.py holds these records against what the two commands really write.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from medvfm_jax import metrics

SITES = ("north", "south")
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def disc(size: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def arrays(size: int = 96, seed: int = 0) -> dict[str, np.ndarray]:
    """Image (H, W, 3), reference and a prediction that is off by a few pixels."""
    reference, prediction = disc(size, (44, 52), 17), disc(size, (47, 50), 16)
    noise = np.random.default_rng(seed).normal(0, 12, (size, size))
    grey = np.clip(60 + 90 * reference + noise, 0, 255).astype(np.uint8)
    return {
        "image": np.repeat(grey[..., None], 3, -1), "reference": reference, "prediction": prediction,
    }  # fmt: skip


def case_rows(shift: float = 0.0, patients: int = 12, instances: bool = False) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for k in range(patients):
        who = {"case": f"case_{k:03d}", "patient": f"patient_{k:03d}", "site": SITES[k % 2]}
        for label, base in (("anterior", 0.86), ("posterior", 0.83)):
            dice = float(np.clip(base + shift + rng.normal(0, 0.04), 0, 1))
            rows.append(
                who
                | {
                    "label": label, "dice": dice, "iou": dice / (2 - dice), "hd": 6 * (1 - dice) + 1.0,
                    "hd95": 4 * (1 - dice) + 0.5, "assd": 2 * (1 - dice), "nsd": min(1.0, dice + 0.1),
                    "volume_reference": 1200.0 + k, "volume_prediction": 1150.0 + k, "unit": "mm", "empty": None,
                }
            )  # fmt: skip
        if instances:
            rows.append(
                who
                | {
                    "label": "instances", "aji": 0.7, "pq": 0.6, "sq": 0.8, "dq": 0.75, "f1_50": 0.75,
                    "f1_75": 0.5, "n_reference": 7, "n_predicted": 9, "empty": None,
                }
            )  # fmt: skip
    rows[1] |= {"empty": "prediction", "dice": 0.0, "iou": 0.0, "nsd": 0.0, "volume_prediction": 0.0}
    return rows


def scores(shift: float = 0.0, rows: list[dict] | None = None, **changes) -> dict:
    rows = case_rows(shift) if rows is None else rows
    record = {
        "format": 1, "metric_profile": "strict", "unit": "patient", "split": "test",
        "model": "lite-medsam + samed", "prompt": "none", "prompt_source": None, "flips": False,
        "data": "Hippocampus", "note": "", **metrics.summarise(rows), "cases": rows, "overlays": [],
        "skipped": [],
        "provenance": {
            "command": "medvfm evaluate --run runs/samed", "seed": 0, "weights_sha256": "79d8c9" + "0" * 58,
            "data_sha256": "ab" * 32, "versions": {"python": "3.11.2", "jax": "0.10.2"},
            "trained": {"parameters": 4_200_123, "total": 9_790_000, "bytes": 16_812_345},
            "device": "cpu (2 cores, x86_64)", "time": "2026-01-02T03:04:05+00:00",
        },
        "predictions": "predictions",
    }  # fmt: skip
    return record | changes


def config(**changes) -> dict:
    split = {"train": ["t1", "t2", "t3"], "val": ["v1"], "test": [f"case_{k:03d}" for k in range(12)]}
    record = {
        "data": "data/Dataset004_Hippocampus", "model": "lite-medsam", "adapter": "samed", "set": [],
        "prompt": "auto", "steps": 200, "batch_size": 4, "learning_rate": None, "objective": "auto",
        "train_cases": 3, "dtype": "float32", "seed": 0,
        "resolved": {
            "data": "/data/Dataset004_Hippocampus", "prompt": "none",
            "transform": {"kind": "prompt_free", "classes": 3},
            "adapter": {"kind": "chain", "preset": "samed", "parts": {"lora": {"kind": "lora", "rank": 4}}},
            "learning_rate": 1e-3, "objective": "samed", "classes": 3, "labels": LABELS,
            "fingerprint": "79d8c9" + "0" * 58, "data_sha256": "ab" * 32, "split": split,
        },
    }  # fmt: skip
    return record | changes


def write_run(folder: Path, shift: float = 0.0, **changes) -> Path:
    """Run directory with settings, curves, scores and the three overlays of one label."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config()))
    rng = np.random.default_rng(1)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, 201):
            loss = 0.15 + 0.8 * math.exp(-step / 40) + abs(rng.normal(0, 0.04))
            line = {"step": step, "loss": loss, "grad_norm": 1.0, "images_per_s": 9.5, "lr": 1e-3}
            file.write(json.dumps(line) + "\n")
            if step % 25 == 0:
                file.write(json.dumps({"step": step, "val_dice": 0.85 - 0.5 * math.exp(-step / 50)}) + "\n")
    overlays = [
        {"case": f"case_{k:03d}", "label": "anterior", "rank": rank, "dice": 0.9 - 0.1 * k}
        for k, rank in enumerate(("best", "median", "worst"))
    ]
    (folder / "overlays").mkdir()
    for seed, entry in enumerate(overlays):
        entry["arrays"] = f"overlays/{entry['label']}_{entry['rank']}.npz"
        np.savez_compressed(folder / entry["arrays"], **arrays(seed=seed))
    record = scores(shift, **({"overlays": overlays} | changes))
    (folder / "scores.json").write_text(json.dumps(record))
    return folder


def change_scores(folder: Path, **changes) -> Path:
    """The run with other scores; a value of None removes the key."""
    path = folder / "scores.json"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return folder


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
