"""The ONNX Runtime side: the PyTorch peers exported in a process of their own, then run by file alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import peers_torch
from experiments.benchmarks.harness import Run, Work


def export_lite_encoder(work: Work) -> None:
    """LiteMedSAM's encoder -> lite_encoder.onnx."""
    _export(
        peers_torch.lite_medsam(work).image_encoder,
        (peers_torch.to_torch(peers_torch.lite_image()),),
        work.folder / "lite_encoder.onnx",
    )


def export_lite_box_to_mask(work: Work) -> None:
    """LiteMedSAM, image and box in, mask logits out -> lite_box_to_mask.onnx."""
    import torch

    box = torch.tensor([peers_torch.BOX])
    image = peers_torch.to_torch(peers_torch.lite_image())
    _export(peers_torch.lite_medsam(work), (image, box), work.folder / "lite_box_to_mask.onnx")


def export_sam_encoder(work: Work) -> None:
    """HF's SamVisionModel with the shared random weights -> sam_encoder.onnx."""
    import torch

    class Embedding(torch.nn.Module):
        """Only the tensor, as the exporter knows no dataclass outputs."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model(pixels).last_hidden_state

    image = peers_torch.to_torch(peers_torch.sam_image(work.sam_size))
    model = Embedding(peers_torch.sam(work, vision_only=True))
    _export(model, (image,), work.folder / "sam_encoder.onnx")


def _export(model, inputs: tuple, path: Path) -> None:
    import torch

    names = [f"input_{i}" for i in range(len(inputs))]
    with torch.no_grad():
        torch.onnx.export(model, inputs, str(path), input_names=names, opset_version=17, dynamo=False)


def lite_encoder(work: Work) -> Run:
    """Embedding (64, 64, 256)."""
    run = _session(work.folder / "lite_encoder.onnx", work.threads)
    image = _channels_first(peers_torch.lite_image())
    return lambda: {"embedding": run({"input_0": image})[0].transpose(1, 2, 0)}


def lite_box_to_mask(work: Work) -> Run:
    """Low-resolution mask logits (1, 1, 256, 256)."""
    run = _session(work.folder / "lite_box_to_mask.onnx", work.threads)
    inputs = {"input_0": _channels_first(peers_torch.lite_image())}
    inputs["input_1"] = np.array([peers_torch.BOX], np.float32)
    return lambda: {"logits": run(inputs)}


def sam_encoder(work: Work) -> Run:
    """Embedding (S/16, S/16, 256)."""
    run = _session(work.folder / "sam_encoder.onnx", work.threads)
    image = _channels_first(peers_torch.sam_image(work.sam_size))
    return lambda: {"embedding": run({"input_0": image})[0].transpose(1, 2, 0)}


def _channels_first(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def _session(path: Path, threads: int) -> Callable[[Mapping[str, Any]], np.ndarray]:
    import onnxruntime

    if not path.exists():
        raise FileNotFoundError(f"{path.name}: the export failed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {entry.name for entry in session.get_inputs()}
    return lambda inputs: session.run(None, {k: v for k, v in inputs.items() if k in used})[0]
