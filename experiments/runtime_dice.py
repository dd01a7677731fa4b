"""Dice of LiteMedSAM on nuclei with its encoder in JAX and in other runtimes: does 8 bits cost masks?

python -m experiments.runtime_dice --data DATA/dsb2018 --cases 40

Zero-shot, boxes from the reference, cases spread over the test split; each is predicted with all encoders.  Dice
of the foreground, differences from JAX with paired intervals.  Results go to results/runtime_dice.json after each case.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tyro

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.data import read_case
from medvfm_jax.export.frozen_encoder import frozen_encoder
from medvfm_jax.images import preprocess
from medvfm_jax.metrics.bootstrap import interval
from medvfm_jax.predict.case_prediction import predict_case
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.runtime import RuntimeName
from medvfm_jax.train.base_model import load_base, with_adapter
from medvfm_jax.train.training_data import open_split

RESULTS = Path(__file__).parent / "results" / "runtime_dice.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and on how much."""

    data: str
    cases: int = 40
    model: str = "lite-medsam"
    runtimes: tuple[RuntimeName, ...] = ("onnxruntime-int8",)
    out: Path = RESULTS


def main(options: Options) -> None:
    cpu.tune()
    compilation_cache.enable()
    source = open_split(options.data, seed=0, val=0.15, test=0.2)
    test = source.split.test
    chosen = [test[i] for i in np.linspace(0, len(test) - 1, min(options.cases, len(test))).astype(int)]
    base = load_base(options.model, classes=source.dataset.classes, seed=0, dtype="float32")
    adapted = with_adapter(base, None)
    encoders = {name: frozen_encoder(name, base.model, base.params) for name in options.runtimes}
    predictors = {
        name: Predictor(adapted, base.params, {}, encoder=encoder)
        for name, encoder in {"jax": None, **encoders}.items()
    }
    encode = jax.jit(base.model.encode)
    dice: dict[str, list[float]] = {name: [] for name in predictors}
    errors: dict[str, list[float]] = {name: [] for name in encoders}
    for count, name in enumerate(chosen, 1):
        case = read_case(source.dataset, name)
        image, _ = preprocess(base.model.spec, case.image.array)
        wanted = np.asarray(encode(base.params, image))
        for runtime, encoder in encoders.items():
            off = encoder.encode(image) - wanted
            errors[runtime].append(float(np.sqrt((off**2).mean() / (wanted**2).mean())))
        for runtime, predictor in predictors.items():
            found = predict_case(predictor, source.dataset, case, "box", 0).labels > 0
            both = found.sum() + (case.label > 0).sum()
            dice[runtime].append(1.0 if both == 0 else 2 * float((found & (case.label > 0)).sum() / both))
        print(count, name, {runtime: round(values[-1], 4) for runtime, values in dice.items()}, flush=True)
        options.out.write_text(
            json.dumps(_record(options, source, chosen, encoders, dice, errors), indent=1) + "\n"
        )


def _record(options, source, chosen, encoders, dice, errors):
    reference = np.array(dice["jax"])
    encoded = {"jax": {"dice": float(reference.mean()), "dice_interval": interval(reference)}}
    for name, encoder in encoders.items():
        difference = np.array(dice[name]) - reference
        encoded[name] = {
            "dice": float(np.mean(dice[name])),
            "minus_jax": float(difference.mean()),
            "minus_jax_interval": interval(difference),
            "largest_loss": float(-difference.min()),
            "embedding_error_rms": float(np.sqrt(np.mean(np.square(errors[name])))),
            "largest_embedding_error": max(errors[name]),
            "encoder": dict(encoder.record),
        }
    return {
        "experiment": "experiments.runtime_dice",
        "model": options.model,
        "data": source.dataset.name,
        "cases": chosen[: len(reference)],
        "encoders": encoded,
        "dice": dice,
        "embedding_errors": errors,
        "versions": versions(),
        "device": device(),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
