# %% [markdown]
# # An adapter of your own
#
# Write an adapter in two functions, train it with the package's own loop, save it, load it again and score it. [How
# adapters work](../own-adapter.md) explains the words *site* and *position*.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import medvfm_jax as mv
from medvfm_jax.adapters.sites import feature_width


def channel_gate(pattern):
    """y * 2 sigmoid(gate), gate (d,) zero at start, after every module that matches."""

    def init_site(key, site):
        return {"gate": jnp.zeros(feature_width(site, "y"))}

    def apply_site(delta, y):
        return y * 2 * jax.nn.sigmoid(delta["gate"])

    return mv.adapters.at(pattern, "after", init_site, apply_site)


# %% [markdown]
# ## A model, and the adapter around it
#
# `adapted` has the functions of the model, each with the delta as one more argument. At the start the adapter is
# the identity, so the adapted model is the pretrained one.

# %%
model, params = mv.load("sam-tiny-test")  # or "lite-medsam", with published weights
model, params = mv.models.to_semantic(model, params, classes=2)  # no prompts: one output per class
adapter = mv.adapters.chain(
    decoder=mv.adapters.tune(r"mask_decoder/.*"),
    gate=channel_gate(r"mask_decoder/transformer/layers_\d/mlp"),
)
adapted = mv.adapters.adapt_model(adapter, model)
delta = adapted.init(jax.random.key(1), params)
print(mv.adapters.count(delta, params))

# %% [markdown]
# ## Data
#
# A folder is split by patient and becomes batches of images and targets (and prompts, for a promptable model).
# This adapter does not touch the image encoder, so each image is encoded once and `image_fn` gives its embedding in
# the place of the image; leave that out (and `cached` below) for an adapter of the encoder.

# %%
dataset = mv.data.open_dataset(mv.data.make_phantom_dataset("cells", n=8, size=32))
split = mv.data.split(dataset, seed=0)
train = mv.data.examples(dataset, split.train, model.spec, "semantic")
encode = jax.jit(functools.partial(model.encode, params))


@functools.cache
def embedding_of(example):
    return np.asarray(encode(mv.data.example_image(dataset, example, model.spec)[0]))


loader = mv.data.make_loader(
    dataset, train, model.spec, "semantic", batch_size=2, seed=0, image_fn=embedding_of
)
print(len(split.train), "training cases,", len(split.test), "test cases")

# %% [markdown]
# ## Train
#
# `make_step` differentiates the delta alone; `fit` fetches batches, takes steps and tells its hooks.

# %%
loss = mv.train.make_loss(adapted, "samed", cached=True)
optimizer = optax.adamw(0.01)
step = functools.partial(mv.train.make_step(loss, optimizer), params)
losses = []
state = mv.train.fit(
    step,
    mv.train.init_state(delta, optimizer, jax.random.key(2)),
    loader,
    hooks=[lambda end: losses.append(end.metrics["loss"])],
    steps=60,
).state
print(
    f"mean loss of the first five steps {np.mean(losses[:5]):.2f}, of the last five {np.mean(losses[-5:]):.2f}"
)

# %% [markdown]
# ## Save and load
#
# The file holds the arrays and which base weights they belong to; with others, `check_base` refuses. An adapter
# made by hand has no configuration (`"adapter": None`), so its code is needed to use the file.

# %%
about = {"base": "sam-tiny-test", "fingerprint": mv.weights.fingerprint(params), "adapter": None}
mv.weights.save_delta("delta.safetensors", state.delta, about)
trained, metadata = mv.weights.load_delta("delta.safetensors")
mv.weights.check_base(metadata, params)

# %% [markdown]
# ## Evaluate
#
# `predict_case` makes a label map on the image's own grid, `score_case` scores it; `summarise` gives intervals over
# patients. With random weights and five images to learn from, the numbers say that it works, not how well.

# %%
from medvfm_jax.predict.case_prediction import predict_case
from medvfm_jax.predict.predictor import Predictor

predictor = Predictor(adapted, params, delta)
for name, arrays in {"pretrained": delta, "adapted": trained}.items():
    rows = []
    for case_id in split.test:
        case = mv.data.read_case(dataset, case_id)
        predicted = predict_case(predictor.with_delta(arrays), dataset, case, "none", seed=0)
        for row in mv.metrics.score_case(case.label, predicted.labels, dataset.labels, case.image.spacing):
            rows.append(row | {"case": case_id, "patient": case.case.patient})
    dice = next(row for row in mv.metrics.summarise(rows)["summary"] if row["metric"] == "dice")
    print(f"{name}: Dice {dice['mean']:.2f}, n = {dice['n']}")
