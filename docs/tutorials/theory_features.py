# %% [markdown]
# # What features say before training
#
# Three tools ask frozen encoders about pictures: which of them see alike (`medvfm analyze similarity`), which tells
# labels apart (`transferability`), how far domains are from each other (`divergence`). [What theory
# predicts](../theory.md) has what they say of real encoders. The two encoders here are tiny and random, and the
# pictures are made up: discs, at one site bright on dark and at the other the other way round.

# %%
import medvfm_jax as mv
from medvfm_jax.settings.analyze import DivergenceConfig, SimilarityConfig, TransferabilityConfig
from medvfm_jax.theory import analyze_divergence, analyze_similarity, analyze_transferability

data = str(mv.data.make_phantom_dataset("cells", n=24, size=32))
models = ("lite-tiny-test", "sam-tiny-test")

# %% [markdown]
# ## Do they see alike?
#
# Centred kernel alignment without bias: 1 for features that are equal up to rotation, scale and shift.

# %%
found = analyze_similarity(SimilarityConfig(data=data, models=models, cases=12))
print(f"{found.images} pictures: {found.alignment[models[0]][models[1]]:.2f}")

# %% [markdown]
# ## Which one to start from?
#
# The evidence of "is of this class" under a linear model of the features at labelled points; beside it the cheap
# measurement, what a ridge classifier gets right on patients that it has not seen.

# %%
found = analyze_transferability(TransferabilityConfig(data=data, models=models, cases=12, points=16))
for one in found.models:
    print(f"{one.model}: LogME {one.logme.value:.3f} ± {one.logme.error:.3f}, probe {one.probe.value:.2f}")

# %% [markdown]
# ## How far are the sites from each other?
#
# A distance of few pictures is never 0, so each stands beside its mean over random divisions of the same patients.

# %%
found = analyze_divergence(
    DivergenceConfig(data=data, models=models[:1], cases=12, permutations=49, directions=20)
)
for one in found.pairs:
    mmd = one.mmd
    print(
        f"{one.first}, {one.second}: MMD² {mmd.value:.2f}, by chance {mmd.by_chance:.2f}, p {mmd.p_value:.2f}"
    )
