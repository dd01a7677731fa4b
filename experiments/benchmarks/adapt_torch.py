"""The PyTorch side of the adaptation benchmark, as one would write it after reading the SAMed paper."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks import peers_torch
from experiments.benchmarks.adapt_data import Examples, examples, factors, flat
from experiments.benchmarks.harness import Run, Work


def with_lora(encoder, heads_of: Callable, rename: Callable[[str], str]) -> dict:
    """Freeze the encoder and put LoRA on q and v of every `qkv`; returns {our path: LoRA module}.

    `heads_of(parent)` is the number of heads if the layer's outputs are ordered head by head (TinyViT), None
    if they are ordered [q | k | v] (SAM).
    """
    import torch

    class LoRA(torch.nn.Module):
        """A frozen qkv layer and low-rank updates of its q and v columns."""

        def __init__(self, qkv, heads: int | None, drawn: dict[str, np.ndarray]):
            super().__init__()
            self.qkv, self.heads = qkv, heads
            for name, value in drawn.items():
                self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(value)))

        def forward(self, x):
            y = self.qkv(x)
            q, v = x @ self.a_q @ self.b_q, x @ self.a_v @ self.b_v
            if self.heads is None:
                dim = q.shape[-1]
                y[..., :dim] += q
                y[..., -dim:] += v
                return y
            parts = y.view(*y.shape[:-1], self.heads, 3, -1)
            parts[..., 0, :] += q.view(*q.shape[:-1], self.heads, -1)
            parts[..., 2, :] += v.view(*v.shape[:-1], self.heads, -1)
            return y

    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    found = [(name, module) for name, module in encoder.named_modules() if hasattr(module, "qkv")]
    loras = {}
    for name, parent in found:
        path = rename(f"{name}.qkv")
        parent.qkv = LoRA(parent.qkv, heads_of(parent), factors(path, parent.qkv.in_features))
        loras[path] = parent.qkv
    return loras


def our_path(name: str) -> str:
    """`layers.1.blocks.0.attn.qkv` -> `image_encoder/layers_1/blocks_0/attn/qkv`."""
    words = ["image_encoder"]
    for word in name.split("."):
        if word.isdigit():
            words[-1] += f"_{word}"
        else:
            words.append(word)
    return "/".join(words)


def dice_ce(logits, target):
    """Logits and targets (B, h, w) -> mean over the batch of cross-entropy + (1 - Dice with smoothing 1)."""
    import torch

    p, g = torch.sigmoid(logits), target
    overlap, size = (p * g).sum((1, 2)), (p + g).sum((1, 2))
    ce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    return ce + (1 - (2 * overlap + 1) / (size + 1)).mean()


def _gradient_run(loss: Callable, loras: dict) -> Run:
    def run() -> dict[str, np.ndarray]:
        for lora in loras.values():
            lora.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        grads = {
            path: {name: p.grad.numpy() for name, p in lora.named_parameters() if p.grad is not None}
            for path, lora in loras.items()
        }
        return {"loss": value.detach().numpy().reshape(1), "gradient": flat(grads)}

    return run


def lite_lora(work: Work, batch: int) -> Run:
    """Loss and LoRA gradient of LiteMedSAM for a batch of images with one box each."""
    import torch

    model = peers_torch.lite_medsam(work).requires_grad_(False)
    loras = with_lora(model.image_encoder, lambda parent: parent.num_heads, our_path)
    data = examples(batch, 256, 256)
    images, masks = tensors(data)
    return _gradient_run(lambda: dice_ce(model(images, data.boxes)[:, 0], masks.to(torch.float32)), loras)


def sam_lora(work: Work, *, checkpoint: bool) -> Run:
    """Loss and LoRA gradient of HF's SamModel (ViT-B) for one image with one box."""
    import torch
    from torch.utils.checkpoint import checkpoint as recompute

    model = peers_torch.sam(work, vision_only=False).requires_grad_(False)
    encoder = model.vision_encoder
    loras = with_lora(
        encoder, lambda parent: None, lambda name: our_path(name).replace("/layers_", "/blocks_")
    )
    if checkpoint:
        for layer in encoder.layers:
            forward = layer.forward
            layer.forward = lambda *args, f=forward, **kw: recompute(f, *args, use_reentrant=False, **kw)
    data = examples(1, work.sam_size, work.sam_size // 4)
    images, masks = tensors(data)

    def loss():
        boxes = torch.from_numpy(data.boxes.copy())[:, None]  # transformers may shift them in place
        out = model(pixel_values=images, input_boxes=boxes, multimask_output=False)
        return dice_ce(out.pred_masks[:, 0, 0], masks.to(torch.float32))

    return _gradient_run(loss, loras)


def decoder_training(work: Work, images: int, epochs: int, batch: int, *, cache: bool) -> Run:
    """Train LiteMedSAM's mask decoder with Adam; the encoder runs every epoch, or once with `cache`."""
    import torch

    model = peers_torch.lite_medsam(work).requires_grad_(False)
    model.mask_decoder.requires_grad_(True)
    data = examples(images, 256, 256)

    def run() -> dict[str, np.ndarray]:
        pixels, masks = tensors(data)
        optimizer = torch.optim.Adam(model.mask_decoder.parameters(), lr=1e-4)
        encode = torch.no_grad()(model.image_encoder)
        embeddings = torch.cat([encode(x[None]) for x in pixels]) if cache else None
        losses = []
        for _ in range(epochs):
            for first in range(0, images, batch):
                part = slice(first, first + batch)
                embedding = embeddings[part] if cache else encode(pixels[part])
                logits = decode(model, embedding, data.boxes[part])
                loss = dice_ce(logits, masks[part].to(torch.float32))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return {"losses": np.array(losses, np.float32)}

    return run


def decode(model, embedding, boxes: np.ndarray):
    """Embeddings (B, 256, 64, 64) and boxes (B, 4) -> mask logits (B, 256, 256)."""
    import torch

    with torch.no_grad():
        prompts = model.prompt_encoder(points=None, boxes=torch.from_numpy(boxes)[:, None], masks=None)
    logits, _ = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=prompts[0],
        dense_prompt_embeddings=prompts[1],
        multimask_output=False,
    )
    return logits[:, 0]


def tensors(data: Examples):
    """-> images (B, 3, S, S), masks (B, h, w) as tensors."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(data.images.transpose(0, 3, 1, 2))), torch.from_numpy(
        data.masks
    )
