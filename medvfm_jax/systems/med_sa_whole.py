"""Medical SAM Adapter as its paper has it: adapters in the mask decoder too, the first made from the prompt."""

from medvfm_jax.systems import med_sa
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

BLOCK = r"mask_decoder/transformer/layers_\d+"


def _parts(spec: ModelSpec) -> Parts:
    encoder = med_sa.SYSTEM.adapter(spec)
    after = {
        "kind": "bottleneck",
        "at": f"{BLOCK}/cross_attn_image_to_token",
        "ratio": 0.25,
        "where": "after",
    }
    return {
        "space": encoder["space"],
        "mlp": encoder["mlp"],
        "hyper": {"kind": "hyper_bottleneck", "at": f"{BLOCK}/cross_attn_token_to_image", "width": 32},
        "decoder_mlp": encoder["mlp"] | {"at": f"{BLOCK}/mlp", "normalise": False},
        "decoder_image": after,
    }


SYSTEM = System(
    description="Med-SA's adapters in the image encoder, and three in every block of the mask decoder: one whose inner "
    "weights the prompt makes (HyP-Adpt), one parallel to the MLP, one after the attention of the image; nothing else "
    "trains (Wu et al. 2023, as in the paper)",
    source="https://arxiv.org/abs/2304.12620",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Interpretation: the release has no hyper-prompting adapter and tunes the whole mask decoder "
    "instead: that is med_sa. HyP-Adpt is our reading of the paper's formulas: width, number of products (one) and "
    "starting values are ours, and each token is adapted by the weights it makes itself. The third adapter acts "
    "before the residual is added.",
)
