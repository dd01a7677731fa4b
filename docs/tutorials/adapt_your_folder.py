# %% [markdown]
# # Adapt your folder
#
# From a folder of images and masks to a model that segments new ones: check, adapt, evaluate, report, segment. The
# folder here holds made-up cells and the model is a tiny one without published weights, so that everything takes
# seconds and the scores mean nothing. With your own images, change `data` and take `model="lite-medsam"`, whose
# weights are fetched and verified on first use.
#
# Each step has a command that does the same; it stands above the code.

# %%
from pathlib import Path

import medvfm_jax as mv
from medvfm_jax.settings import EvaluateConfig

data = mv.data.make_phantom_dataset("cells", n=10, size=32)  # images/, masks/, instances/, sites.csv
print(sorted(path.name for path in data.iterdir()))

# %% [markdown]
# ## Is the folder in order?
#
# `medvfm check --data cells`
#
# Every case is read before any work, and what could go wrong later is said. From Python, opening the folder gives a
# [`Dataset`][medvfm_jax.data.Dataset]; splits are by patient. [Data folders](../data-folders.md) says what a folder
# may look like.

# %%
dataset = mv.data.open_dataset(data)
print(len(dataset.cases), "cases,", "classes", dict(dataset.labels))

# %% [markdown]
# ## Adapt
#
# `medvfm adapt --data cells --model sam-tiny-test --adapter linear --prompt none --steps 60 --out runs/cells`
#
# The image encoder is frozen, and [`linear`](../methods.md) tunes the last layers of the mask decoder. Without
# prompts, the model gets one output per class. What is trained is the *delta*. Killed at any moment, the same command
# with `--resume` gives the same bits.

# %%
settings = mv.train.AdaptConfig(
    data=str(data),
    model="sam-tiny-test",
    adapter="linear",
    prompt="none",
    steps=60,
    batch_size=2,
    learning_rate=0.01,
    validate_every=30,
    out=Path("runs/cells"),
)
result = mv.train.adapt(settings)
print(sorted(path.name for path in result.folder.iterdir()))

# %% [markdown]
# ## Evaluate
#
# `medvfm evaluate --run runs/cells`
#
# Every score comes with its number of cases and an interval over patients.

# %%
scores = mv.predict.evaluate(EvaluateConfig(run=result.folder))
for row in scores["summary"]:
    if row["metric"] == "dice":
        print(f"{row['label']}: Dice {row['mean']:.2f}, n = {row['n']}")

# %% [markdown]
# ## Report
#
# `medvfm report runs/cells` writes one HTML file that works offline.

# %%
from medvfm_jax import report

print(report.write([result.folder], Path("runs/report.html")))

# %% [markdown]
# ## Segment a new image
#
# `medvfm segment cells/images/cell_000.png --run runs/cells --out mask.png`
#
# Next: [an adapter of your own](own_adapter.md), [several hospitals, one model](federated_round.md).
