"""`medvfm systems`: the published ways to adapt a model, one line each, and which fit a model."""

import jax

from medvfm_jax import models, systems
from medvfm_jax.cli import console
from medvfm_jax.cli.options.systems import SystemsArgs
from medvfm_jax.systems.fitting import fit


def run(args: SystemsArgs) -> int:
    """List them."""
    described = systems.SYSTEMS.describe()
    if args.model is None:
        for name, text in described.items():
            console.say(f"{name:<13} {text}")
        console.result({"systems": [{"name": n, "description": text} for n, text in described.items()]})
        return 0
    model = models.build(args.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = []
    for name, text in described.items():
        fits = fit(name, model, params, args.rank)
        words = f"does not fit: {fits.reason}" if fits.trained is None else f"{fits.trained:>11,} parameters"
        console.say(f"{name:<13} {words}")
        found.append({"name": name, "description": text, "trained": fits.trained, "reason": fits.reason})
    console.result({"model": args.model, "rank": args.rank, "systems": found})
    return 0
