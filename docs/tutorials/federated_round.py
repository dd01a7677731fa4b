# %% [markdown]
# # A federated round
#
# Two hospitals improve one delta and exchange no images. `medvfm federate` does all of this for a folder with
# `sites.csv`; here are the same functions one by one, so that you can change any of them.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import medvfm_jax as mv

fed = mv.federated

# %% [markdown]
# ## What trains
#
# One frozen model, known to everybody, and a small delta: here the last layers of the mask decoder (the system
# [`linear`](../methods.md)). The loss of an algorithm is a function of the delta, a batch and a key.

# %%
model, params = mv.load("sam-tiny-test")  # or "lite-medsam", with published weights
adapted = mv.adapters.adapt_model(mv.systems.adapter("linear", model), model)
delta = adapted.init(jax.random.key(1), params)
with_metrics = mv.train.make_loss(adapted, "medsam", cached=True)  # images are embeddings


def loss(delta, batch, key):
    return with_metrics(params, delta, batch, key)[0]


# %% [markdown]
# The encoder is frozen, so each hospital encodes its images once and rounds run the decoder alone.

# %%
encode = jax.jit(functools.partial(model.encode, params))


@functools.cache
def embedding_of(example):
    return np.asarray(encode(mv.data.example_image(dataset, example, model.spec)[0]))


# %% [markdown]
# ## What each hospital has
#
# A [`Shard`][medvfm_jax.federated.Shard] holds the batches of one round, stacked over clients: leaves (clients,
# steps, batch, ...).

# %%
STEPS = 4
dataset = mv.data.open_dataset(mv.data.make_phantom_dataset("cells", n=8, size=32))
sites = sorted({case.site for case in dataset.cases})
prompts = mv.data.PromptConfig("box", count=2)


def batches_of(site):
    cases = [case.id for case in dataset.cases if case.site == site]
    found = mv.data.examples(dataset, cases, model.spec, "promptable")
    loader = mv.data.make_loader(
        dataset, found, model.spec, "promptable", batch_size=2, seed=0, prompts=prompts, image_fn=embedding_of
    )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[next(loader) for _ in range(STEPS)])


shards = jax.tree.map(lambda *leaves: np.stack(leaves), *map(batches_of, sites))
samples = jnp.array([sum(case.site == site for case in dataset.cases) for site in sites], jnp.float32)
data = fed.Shard(shards, samples)
print(dict(zip(sites, samples.astype(int).tolist())))

# %% [markdown]
# ## Rounds
#
# An algorithm says what clients and server compute, a codec what travels: `int8` sends about one byte per number.
# The round is one compiled function of its states and a key.

# %%
algorithm = fed.algorithms.fedavg(fed.gradient_of(loss), optax.adam(0.01))
federation = fed.make_round(algorithm, codec=fed.codecs.int8())
server, clients = federation.init(delta, data)
round_ = jax.jit(federation.round)
everybody, all_steps = jnp.ones(len(sites), bool), jnp.full(len(sites), STEPS)
for number in range(3):
    server, clients, metrics = round_(server, clients, data, everybody, all_steps, jax.random.key(2))
    print(f"round {number + 1}: loss {metrics.loss:.3f}, {metrics.upload_bits / 8e3:.1f} kB up")

# %% [markdown]
# `server.delta` is the shared delta: `adapted.apply(params, server.delta, image, prompts)` uses it.
#
# Other rules are one word away: `scaffold`, `fednova`, robust means, personalised parts ([all of
# them](../methods.md)), or [an algorithm of your own](../own-algorithm.md). Next: [a private
# round](private_round.md).
