# %% [markdown]
# # Runs beside what was predicted of them
#
# `medvfm analyze ablate --grid grid.json` predicts every cell of a grid before it trains it and puts both side by side;
# `medvfm analyze scaling --curve curve.json` fits a law to a learning curve and predicts the sizes that were left out.

# %%
import json
from pathlib import Path

import medvfm_jax as mv
from medvfm_jax.settings.analyze import AblateConfig, ScalingConfig
from medvfm_jax.theory import analyze_ablate, analyze_scaling

# %% [markdown]
# ## A curve goes on
#
# These Dice values are measured: a logistic regression on LiteMedSAM's features of nuclei, mean over three supports
# ([results](../results.md#from-a-few-labelled-pictures)). The law is fitted to the first four sizes.

# %%
shots, dice = (1, 2, 4, 8, 16, 32), (0.466, 0.589, 0.661, 0.708, 0.748, 0.761)
rows = [{"shots": n, "label": "all", "seeds": [value]} for n, value in zip(shots, dice)]
Path("curve.json").write_text(json.dumps({"curve": rows}))
found = analyze_scaling(ScalingConfig(curve=Path("curve.json"), fit_up_to=8, at=(64,)))
for point in found.points:
    measured = "not measured" if point.measured is None else f"{point.measured:.3f} measured"
    print(
        f"{point.shots:2d} pictures: {point.predicted:.3f} {'fitted' if point.fitted else 'predicted'}, {measured}"
    )

# %% [markdown]
# ## A grid
#
# Two learning rates of a tiny model with random weights on made-up pictures. What is there already is kept, so a grid
# can be stopped and go on, and what failed is listed.

# %%
data = mv.data.make_phantom_dataset("cells", n=8, size=32)
grid = {
    "settings": {
        "data": str(data), "model": "sam-tiny-test", "adapter": "linear", "prompt": "box", "prompts_per_image": 1,
        "steps": 2, "batch_size": 1, "augment": "none",
    },
    "vary": {"learning_rate": [0.01, 0.0001]},
    "seeds": [0],
    "tools": ["size"],
}  # fmt: skip
Path("grid.json").write_text(json.dumps(grid))
found = analyze_ablate(AblateConfig(grid=Path("grid.json"), out=Path("ablation"), test_cases=2))
for cell in found.cells:
    print(f"{cell.name}: {cell.predicted['trained']['value']:,.0f} trained numbers, Dice {cell.mean:.3f}")
print(f"{len(found.failed)} failed")
