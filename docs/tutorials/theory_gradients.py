# %% [markdown]
# # What gradients say before training
#
# Three tools look at a model at its start: where a low-rank update gains most (`medvfm analyze placement`), how fast an
# adapter learns (`kernel`), how curved the loss is (`curvature`). [What theory predicts](../theory.md) says what each
# number is and how it did against measurement. Here they run on a made-up dataset and a tiny model with random
# weights, so the numbers say that it works, and nothing else.

# %%
import medvfm_jax as mv
from medvfm_jax.settings.analyze import CurvatureConfig, KernelConfig, PlacementConfig
from medvfm_jax.theory import analyze_curvature, analyze_kernel, analyze_placement

data = str(mv.data.make_phantom_dataset("cells", n=8, size=32))
same = {"data": data, "model": "lite-tiny-test", "cases": 2, "prompts_per_image": 1}

# %% [markdown]
# ## Where?
#
# The gain of a place is what the best first step of that rank takes off the loss, per unit of learning rate; with a
# budget of trained numbers the result has the pattern for `--set lora.at=`.

# %%
found = analyze_placement(PlacementConfig(**same, rank=2, budget=500, at=r".*mask_decoder/transformer/.*"))
for group in found.groups[:3]:
    print(
        f"{group.path}: {group.trained} numbers, gain {group.gain:.2g}, nine tenths in rank {group.energy_rank:g}"
    )
print("chosen:", found.pattern[:70])

# %% [markdown]
# ## How fast?
#
# Gradients of a few logits with respect to what an adapter trains; their products are the empirical tangent kernel.

# %%
found = analyze_kernel(KernelConfig(**same, adapters=("linear",), outputs=4))
for one in found.adapters:
    print(
        f"{one.adapter}: {one.trained} numbers, alignment {one.summary.alignment:.2f}, slope {one.summary.slope:.3g}"
    )

# %% [markdown]
# ## How curved?
#
# Second derivatives are known by products with vectors alone; Lanczos' method makes a spectrum of them. Plain gradient
# descent leaves this point above a rate of two over the largest eigenvalue.

# %%
found = analyze_curvature(CurvatureConfig(**same, adapter="linear", probes=1, iterations=4))
spectrum = found.spectrum
print(
    f"largest eigenvalue {spectrum.largest[0]:.3g}, trace {spectrum.trace:.3g}, {spectrum.products} products"
)
