"""The medvfm_jax side of the adaptation benchmark."""

import re

import numpy as np

from experiments.benchmarks import ours
from experiments.benchmarks.adapt_data import Examples, examples, factors, flat
from experiments.benchmarks.harness import Run, Work

QKV = r"image_encoder/(.*/)?attn/qkv"
SCANNED = re.compile(r"image_encoder/blocks/block_(\d+)/(.*)")


def lite_lora(work: Work, batch: int) -> Run:
    """Loss and LoRA gradient of LiteMedSAM for a batch of images with one box each."""
    return _lora(*ours.load_lite_medsam(work), examples(batch, 256, 256))


def sam_lora(work: Work, *, scan_blocks: bool) -> Run:
    """Loss and LoRA gradient of SAM ViT-B for one image with one box; `scan_blocks` recomputes blocks."""
    model, params = ours.load_sam(work, scan_blocks=scan_blocks, remat=scan_blocks)
    return _lora(model, params, examples(1, work.sam_size, work.sam_size // 4))


def _lora(model, params, data: Examples) -> Run:
    import jax

    from medvfm_jax import adapters
    from medvfm_jax.losses import dice_ce
    from medvfm_jax.train.step import make_gradient

    adapted = adapters.adapt_model(adapters.lora(4, None, QKV, slices="qv"), model)
    delta = _with_shared_factors(jax.eval_shape(adapted.init, jax.random.key(0), params))

    def loss(params, delta, batch, key):
        def one(image, prompts, mask):
            return dice_ce(adapted.apply(params, delta, image, prompts).logits[0, 0], mask)

        return jax.vmap(one)(*batch).mean(), {}

    # As `medvfm adapt` does it on CPU: one image after the other.
    gradient = jax.jit(make_gradient(loss, accumulate=len(data.images)))
    batch = jax.tree.map(jax.numpy.asarray, (data.images, _boxes(data), data.masks))

    def run() -> dict[str, np.ndarray]:
        metrics, grads = jax.device_get(gradient(params, delta, batch, jax.random.key(0)))
        return {"loss": np.reshape(metrics["loss"], 1), "gradient": flat(_unstacked(grads))}

    return run


def _boxes(data: Examples):
    """One box per image; leaves (B, 1, 2, ...)."""
    from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, Prompts

    points = data.boxes.reshape(-1, 1, 2, 2)
    return Prompts(points, np.tile(np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], np.int32), (len(points), 1, 1)))


def _with_shared_factors(shapes):
    """Delta of these shapes with the arrays that the peers have; stacked blocks get theirs in order."""
    import jax.numpy as jnp

    stacked_per_group = sum(1 for path in shapes if SCANNED.fullmatch(path))

    def arrays(path, site):
        dim = site["a_q"].shape[-2]
        if not (match := SCANNED.fullmatch(path)):
            return factors(path, dim)
        groups, j, rest = site["a_q"].shape[0], int(match[1]), match[2]
        drawn = [
            factors(f"image_encoder/blocks_{g * stacked_per_group + j}/{rest}", dim) for g in range(groups)
        ]
        return {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}

    return {path: {k: jnp.asarray(v) for k, v in arrays(path, site).items()} for path, site in shapes.items()}


def _unstacked(grads):
    """Gradients by the path of each block, whether the blocks were stacked or not."""
    stacked_per_group = sum(1 for path in grads if SCANNED.fullmatch(path))
    single = {}
    for path, arrays in grads.items():
        if not (match := SCANNED.fullmatch(path)):
            single[path] = arrays
            continue
        for g in range(len(arrays["a_q"])):
            name = f"image_encoder/blocks_{g * stacked_per_group + int(match[1])}/{match[2]}"
            single[name] = {k: v[g] for k, v in arrays.items()}
    return single


def decoder_training(work: Work, images: int, epochs: int, batch: int) -> Run:
    """Train LiteMedSAM's mask decoder with Adam on embeddings that are computed once."""
    import jax
    import optax

    from medvfm_jax import adapters
    from medvfm_jax.losses import dice_ce

    model, params = ours.load_lite_medsam(work)
    adapted = adapters.adapt_model(adapters.tune(r"mask_decoder/.*"), model)
    data = examples(images, 256, 256)

    def run() -> dict[str, np.ndarray]:
        encode, optimizer = jax.jit(model.encode), optax.adam(1e-4)
        embeddings = np.stack([encode(params, image) for image in data.images])
        prompts = _boxes(data)

        def loss(delta, params, embeddings, prompts, masks):
            def one(embedding, prompts, mask):
                return dice_ce(adapted.decode(params, delta, embedding, prompts).logits[0, 0], mask)

            return jax.vmap(one)(embeddings, prompts, masks).mean()

        @jax.jit
        def step(delta, state, params, *batch):
            value, grads = jax.value_and_grad(loss)(delta, params, *batch)
            updates, state = optimizer.update(grads, state, delta)
            return optax.apply_updates(delta, updates), state, value

        delta = adapted.init(jax.random.key(0), params)
        state, losses = optimizer.init(delta), []
        for _ in range(epochs):
            for first in range(0, images, batch):
                part = jax.tree.map(lambda x, i=first: x[i : i + batch], (embeddings, prompts, data.masks))
                delta, state, value = step(delta, state, params, *part)
                losses.append(float(value))
        return {"losses": np.array(losses, np.float32)}

    return run
