"""`medvfm systems`: the published ways to adapt a model, one line each, and which fit a model."""

from collections.abc import Iterator

import jax

from medvfm_jax import models, systems, traces
from medvfm_jax.cli import console
from medvfm_jax.cli.options.systems import SystemsArgs
from medvfm_jax.settings.groups import TUNE_ALL
from medvfm_jax.systems.fitting import Fit, fits
from medvfm_jax.weights.registry import model_of


def run(args: SystemsArgs) -> int:
    """List them."""
    described = systems.SYSTEMS.describe()
    if args.model is None:
        for name, text in described.items():
            console.say(f"{name:<13} {text}")
        console.result({"systems": [{"name": n, "description": text} for n, text in described.items()]})
        return 0
    found = []
    for (name, text), fit in zip(described.items(), _fits(args, list(described)), strict=True):
        words = f"does not fit: {fit.reason}" if fit.trained is None else f"{fit.trained:>11,} parameters"
        console.say(f"{name:<13} {words}")
        found.append({"name": name, "description": text, "trained": fit.trained, "reason": fit.reason})
    console.result({"model": args.model, "rank": args.rank, "systems": found})
    return 0


def _fits(args: SystemsArgs, names: list[str]) -> Iterator[Fit]:
    """Whether each system fits, as it was found an earlier time; what is not known is traced.

    One that would leave the random weights of a model as they are is refused as `adapt` does.
    """
    entry = models.MODELS[model_of(args.model)]  # an unknown name is refused before anything is looked up
    scratch = entry.start == "random"

    def words(name: str) -> list[object]:
        return ["fit", name, args.model, args.rank]

    kept = {name: traces.facts(words(name)) for name in names}
    unknown = [n for n in names if kept[n] is None and not (scratch and n not in TUNE_ALL)]
    traced = _traced(args, unknown) if unknown else iter(())
    for name in names:
        if scratch and name not in TUNE_ALL:
            yield Fit(None, "the model starts from random weights, which it would leave so; use full.")
            continue
        if (known := kept[name]) is None:
            known = next(traced)._asdict()
            traces.keep_facts(words(name), known)
        yield Fit(**known)


def _traced(args: SystemsArgs, names: list[str]) -> Iterator[Fit]:
    model = models.build(model_of(args.model))
    return fits(names, model, jax.eval_shape(model.init, jax.random.key(0)), args.rank)
