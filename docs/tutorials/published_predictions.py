# %% [markdown]
# # Three published predictions, looked at again
#
# For a reader with a paper in hand: what it predicts, the code that asks, and what came out on real data. The code
# runs here on made-up pictures and a tiny model with random weights; give it your folder and `lite-medsam` to ask in
# earnest. The figures under *Measured* are those of the experiments named there, not of this page.

# %%
import jax
import numpy as np
import optax

import medvfm_jax as mv
from medvfm_jax.settings.analyze import DriftConfig, TransferabilityConfig
from medvfm_jax.theory import analyze_drift, analyze_transferability

DATA, MODEL, STEPS = str(mv.data.make_phantom_dataset("cells", n=16, size=32)), "sam-tiny-test", 2

# %% [markdown]
# ## Where an adapter sits matters more than which it is
#
# **Expected** ([2502.00418](https://arxiv.org/abs/2502.00418)): of the scores of adapters of several types in several
# places, the place explains more than the type.

# %%
PLACES = {
    "encoder": r"image_encoder/(.*/)?mlp/(fc1|fc2|lin1|lin2)",
    "decoder": r"mask_decoder/transformer/(.*/)?(q_proj|v_proj)",
}
TYPES = {"LoRA": lambda at: mv.adapters.lora(2, 2.0, at), "SSF": mv.adapters.scale_shift}

model, params = mv.load(MODEL)
dataset = mv.data.open_dataset(DATA)
split = mv.data.split(dataset, seed=0, val=0.1, test=0.3)


def batches(cases):
    found = mv.data.examples(dataset, cases, model.spec, "promptable")
    prompts = mv.data.PromptConfig("box", count=2)
    return mv.data.make_loader(
        dataset, found, model.spec, "promptable", batch_size=2, seed=0, prompts=prompts
    )


def dice(adapter):
    adapted = mv.adapters.adapt_model(adapter, model)
    loss, optimizer = mv.train.make_loss(adapted, "medsam"), optax.adam(3e-3)
    step = jax.jit(mv.train.make_step(loss, optimizer))
    state = mv.train.init_state(adapted.init(jax.random.key(0), params), optimizer, jax.random.key(1))
    train, test = batches(split.train), batches(split.test)
    for _ in range(STEPS):
        state, _ = step(params, state, next(train))

    @jax.jit
    @jax.vmap
    def of_image(image, prompts, target):
        masks, real = adapted.apply(params, state.delta, image, prompts).logits[:, 0] > 0, target > 0.5
        return 2 * (masks & real).sum() / (masks.sum() + real.sum())

    batch = next(test)
    return float(of_image(batch.image, batch.prompts, batch.target).mean())


table = np.array([[dice(make(at)) for make in TYPES.values()] for at in PLACES.values()])
apart = table - table.mean()
whole = (apart**2).sum()
print(f"place explains {100 * apart.shape[1] * (apart.mean(1) ** 2).sum() / whole:.0f} % of the variance")
print(f"type explains {100 * apart.shape[0] * (apart.mean(0) ** 2).sum() / whole:.0f} %")

# %% [markdown]
# **Measured** (`python -m experiments.place_or_type`, nuclei, LiteMedSAM, three types in three places, 40 steps, one
# seed): place 94 %, type 4 %. So it holds here. [More](../theory.md#place-or-type)
#
# ## The evidence of the labels ranks encoders
#
# **Expected** (LogME, [2102.11005](https://arxiv.org/abs/2102.11005)): the larger the evidence of the labels under a
# linear model of an encoder's features, the better the encoder will do.

# %%
said = analyze_transferability(
    TransferabilityConfig(data=DATA, models=(MODEL, "lite-tiny-test"), cases=8, points=16)
)
for one in said.models:
    print(f"{one.model}: LogME {one.logme.value:.3f} ± {one.logme.error:.3f}, probe {one.probe.value:.2f}")

# %% [markdown]
# **Measured** (`python -m experiments.transferability`, five encoders, against the Dice of a linear head): rank
# correlation +0.90 on hippocampus (p 0.04) and +0.80 on nuclei (p 0.07). So it holds where encoders differ much; it
# cannot tell those apart that differ by less than their errors. With five encoders, four of them kin, this is a hint.
# [More](../theory.md#which-encoder-to-start-from)
#
# ## Local steps drift as K (K - 1)
#
# **Expected** (from the expansion behind the bias of federated averaging,
# [1907.02189](https://arxiv.org/abs/1907.02189)): K local steps of rate r end r² K (K - 1) / 2 times a constant away
# from K steps on all data, so the share of the step that is lost grows with K - 1.

# %%
found = analyze_drift(
    DriftConfig(data=DATA, model=MODEL, adapter="linear", cases=2, prompts_per_image=1, local_steps=(2, 4, 8))
)
first = found.points[0]
for point in found.points:
    print(
        f"K = {point.steps}: expected {point.predicted / first.predicted:.1f} times that of K = 2, "
        f"found {point.measured / first.measured:.1f} times"
    )

# %% [markdown]
# **Measured** (`medvfm analyze drift` on eight sites of nuclei, LiteMedSAM's decoder): from 2 to 8 steps the drift
# should grow 7 times and grew 2.4 times. It is right within a third up to four steps and twice too large at eight, so
# **as a law in K it fails there**: third derivatives count. And a drift of 31 % left 78 % of the decrease of the loss.
# [More](../theory.md#how-many-local-steps-can-sites-take)
