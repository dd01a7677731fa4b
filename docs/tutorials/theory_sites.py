# %% [markdown]
# # What sites do to each other
#
# Before a federated run: do the gradients of the sites agree (`medvfm analyze conflict`), and how many local steps can
# they take before their average leaves the path of training on all data (`drift`)? [Sites with different
# tasks](../crosstask.md) and [What theory predicts](../theory.md#how-many-local-steps-can-sites-take) have both on real
# sites. Here are two made-up sites and a tiny model.

# %%
import medvfm_jax as mv
from medvfm_jax.settings.analyze import ConflictConfig, DriftConfig
from medvfm_jax.theory import analyze_conflict, analyze_drift

data = str(mv.data.make_phantom_dataset("cells", n=16, size=32))
same = {"data": data, "model": "lite-tiny-test", "adapter": "linear", "cases": 2, "prompts_per_image": 1}

# %% [markdown]
# ## Do they pull apart?
#
# A cosine between sites means little where the two halves of one site do not agree with each other, so both are shown.

# %%
found = analyze_conflict(ConflictConfig(**same))
names = [site.site for site in found.sites]
print(f"cosine of {names[0]} and {names[1]}: {found.cosine[0][1]:.2f}")
for site in found.sites:
    print(f"{site.site}: cosine of its own halves {site.agreement:.2f}")
print(f"a step for {names[0]} takes {100 * found.affinity[0][1]:.2f} % off the loss of {names[1]}")

# %% [markdown]
# ## How many local steps?
#
# To the third order in the rate r, K steps drift by r² K (K - 1) / 2 times a vector that follows from gradients and
# second derivatives at the start. The command takes the steps too.

# %%
found = analyze_drift(DriftConfig(**same, local_steps=(1, 2, 4)))
for point in found.points:
    print(
        f"{point.steps} steps: drift {100 * point.predicted:.1f} % predicted, {100 * point.measured:.1f} % measured"
    )
