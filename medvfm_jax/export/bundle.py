"""An exported model in one call: picture and prompts to masks. Needs numpy and the model's runtime, nothing else.

This file is copied beside every exported model as ``medvfm_bundle.py``; in the package it opens the files that are
checked. The arithmetic is that of ``medvfm_jax.images``, to which the tests hold it.

    from medvfm_bundle import Model
    model = Model("folder")
    found = model(picture, boxes=[(30, 40, 110, 120)])   # picture (H, W) or (H, W, C); found["labels"] (H, W)

Coordinates are pixels of the picture, x to the right, y down.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

ABSENT, PAD, BOX = -2, -1, (2, 3)
PICTURES = (".npy", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MOST_BYTES = 2 << 30  # of a picture in memory
MOST_CHANNELS = 4  # more are the slices of a volume
ROUNDING = 1e-6  # of the greatest intensity: what differs by no more is a single intensity, resampled


class Refused(ValueError):
    """A file that is no picture, or a place where no mask can be written."""


class Model:
    """The model of a folder that ``medvfm export`` wrote."""

    def __init__(self, folder, int8=False, threads=None):
        """Read the files.

        int8: take the files with 8-bit weights, where the folder has them.  threads: of the runtime.
        """
        folder = Path(folder)
        self.card = read_card(folder / "model.json")
        files = self.card["files_int8" if int8 else "files"]
        if not files:
            raise ValueError(f"{folder} has no files with 8-bit weights; export it with --int8.")
        for name in files.values():
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing; export the model again.")
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != self.card["sha256"][name]:
                raise ValueError(
                    f"{folder / name} is not the file that was exported; export the model again."
                )
        try:
            self._parts = {
                name: network(folder / file, self.card["parts"][name], threads)
                for name, file in files.items()
            }
        except ImportError as error:
            runtime = self.card["runtime"]
            raise ImportError(f"These files need {runtime} ({error}): pip install {runtime}") from error

    def __call__(self, picture, boxes=(), points=()):
        """Masks of a picture (H, W) or (H, W, C).

        boxes: (x0, y0, x1, y1), an object each.  points: (x, y, label), label 1 inside and 0 outside, all of one
        object, or of the one box; or a list of such lists, one for each object.
        Gives a dict with labels (H, W): class, or number of the object, 0 for none; logits (Q, H, W) of the objects or
        (C, H, W) of the classes; iou (Q,) of objects.
        """
        semantic = self.card["task"] == "semantic"
        if semantic and (len(boxes) or len(points)):
            raise ValueError("This model segments without prompts; leave out boxes and points.")
        image, frame = prepare(self.card, picture)
        if semantic:
            logits = restore(frame, self._one("model", image)[0])
            return {"labels": logits.argmax(0).astype(np.int32), "logits": logits}
        self._prompts(frame, boxes, points)  # those that mean nothing are refused before the encoder works
        return self.ask((self._one("encoder", image)[0], frame), boxes, points)

    def encode(self, picture):
        """Picture -> (embedding, frame), to be asked again and again."""
        image, frame = prepare(self.card, picture)
        return self._one("encoder", image)[0], frame

    def ask(self, encoded, boxes=(), points=()):
        """The masks of an encoded picture; see ``__call__``."""
        embedding, frame = encoded
        points, labels = self._prompts(frame, boxes, points)
        many = self.card["parts"]["decoder"]["inputs"][1]["shape"][0]
        step = len(points) if isinstance(many, str) else many
        found = []
        for start in range(0, len(points), step):
            missing = max(0, start + step - len(points))
            some = np.pad(points[start : start + step], [(0, missing), (0, 0), (0, 0)])
            kinds = np.pad(labels[start : start + step], [(0, missing), (0, 0)], constant_values=ABSENT)
            logits, iou = self._parts["decoder"](embedding, some, kinds)[:2]
            found.append((logits[: step - missing], iou[: step - missing]))
        logits, iou = (np.concatenate(arrays) for arrays in zip(*found))
        best = iou.argmax(1)
        logits = restore(frame, np.take_along_axis(logits, best[:, None, None, None], 1)[:, 0])
        labels = np.where(logits.max(0) > 0, 1 + logits.argmax(0), 0).astype(np.int32)
        return {"labels": labels, "logits": logits, "iou": iou[np.arange(len(iou)), best]}

    def _prompts(self, frame, boxes, points):
        slots = self.card["parts"]["decoder"]["inputs"][1]["shape"][1]
        return make_prompts(frame, as_objects(boxes, points), slots)

    def _one(self, part, image):
        """What a part gives for one image, filled up to the batch it was exported for."""
        many = self.card["parts"][part]["inputs"][0]["shape"][0]
        batch = np.zeros((1 if isinstance(many, str) else many, *image.shape), np.float32)
        batch[0] = image
        return [array[0] for array in self._parts[part](batch)]


def card_digest(card):
    """sha256 of what model.json says: another intensity rule or label would make other masks without a word."""
    said = {name: value for name, value in card.items() if name != "sha256_of_this"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_card(path):
    """model.json as it was exported; ValueError where it is anything else."""
    try:
        card = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); export the model again.") from error
    if not isinstance(card, dict) or card.get("sha256_of_this") != card_digest(card):
        raise ValueError(f"{path} is not as it was exported; export the model again.")
    return card


def network(file, part, threads=None):
    """A file -> a function of its inputs that gives a list of its outputs, in the order of ``part``."""
    file = Path(file)
    names = [tensor["name"] for tensor in part["inputs"]]
    wanted = [tensor["name"] for tensor in part["outputs"]]
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda *inputs: session.run(wanted, dict(zip(names, inputs)))
    if file.suffix == ".tflite":
        from ai_edge_litert.interpreter import Interpreter

        run = Interpreter(str(file), num_threads=threads).get_signature_runner()

        def called(*inputs):
            found = run(**dict(zip(names, inputs)))
            return [found[name] for name in wanted]

        return called
    from jax import export, jit

    call = jit(export.deserialize(bytearray(file.read_bytes())).call)
    return lambda *inputs: [np.asarray(array) for array in call(*inputs)]


def read(path):
    """A picture's file as an array of the colours that viewers show: .npy, or PNG, JPEG, BMP and TIFF by Pillow.

    Refused are what is damaged, has several pages, or takes more than MOST_BYTES.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in PICTURES:
        raise Refused(f"{path} has an unknown type '{kind}'; expected one of {', '.join(PICTURES)}.")
    if not path.is_file():
        raise Refused(f"{path} is no file; give the name of a picture.")
    if kind != ".npy":
        check_pillow(path)
    try:
        return from_npy(path) if kind == ".npy" else from_pillow(path)
    except Refused:
        raise
    except Exception as error:  # decoders report damage with nearly every type there is
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise Refused(f"{path} cannot be read as a picture ({reason}); get the file again.") from error


def from_npy(path):
    """The array of a file, whose size is checked before its numbers are read."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise Refused(f"{path} holds no picture; expected an array of numbers.")
    check_bytes(path, array.nbytes)
    return np.array(array)


def from_pillow(path):
    """The pixels of a file that Pillow reads."""
    from PIL import Image, ImageOps

    kinds = ("PNG", "JPEG", "BMP", "TIFF")
    with Image.open(path, formats=kinds) as file:
        count = getattr(file, "n_frames", 1) if file.format in ("PNG", "TIFF") else 1
        said = str(file.tag_v2.get(270, "")) if file.format == "TIFF" else ""
        images = [line for line in said.splitlines() if line.startswith("images=") and line != "images=1"]
        if count > 1 or images or '"truncated": true' in said or said.count('FileName="') > 1:
            raise Refused(f"{path} has several pages; save the one that counts as a file of its own.")
        raw = str(file.tile[0][3]) if file.format in ("PNG", "TIFF") and file.tile else ""
        if ";16" in raw and file.mode[0] not in "IF":
            raise Refused(f"{path} has 16 bits per colour, of which Pillow keeps 8; give it as .npy.")
        check_bytes(path, 4 * file.width * file.height)
        if file.format == "PNG":
            file.verify()  # checksums, which decoding does not look at
    with Image.open(path, formats=kinds) as file:
        picture = ImageOps.exif_transpose(file)
    if picture.mode == "LA":  # transparency is dropped
        picture = picture.getchannel("L")
    elif picture.mode not in ("1", "L", "I", "F", "RGB") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")  # palettes, CMYK, transparency
    return np.asarray(picture)


def check_bytes(path, size):
    """Refuse a picture that is too large to hold."""
    if size > MOST_BYTES:
        most = MOST_BYTES / 2**30
        raise Refused(f"{path} needs {size / 2**30:.3g} GiB, more than the {most:g} that are read; crop it.")


def check_pillow(path):
    """Refuse a file that only Pillow reads or writes, where it is missing."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise Refused(f"{path} needs Pillow: pip install pillow, or give a .npy.") from None


def check_mask(path, overwrite=False):
    """Refuse a name under which ``write`` could write no mask."""
    path = Path(path)
    if path.suffix.lower() not in (".npy", ".png"):  # JPEG changes numbers
        raise Refused(f"{path} should end with .npy or .png.")
    if path.suffix.lower() == ".png":
        check_pillow(path)
    if not path.parent.is_dir():
        raise Refused(f"{path.parent} is no folder; make it first, or write the mask elsewhere.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise Refused(f"{path} is there already; give --overwrite, or another name.")


def write(path, labels):
    """Labels (H, W) as .npy, or as .png of 8 bits up to 255, else of 16."""
    if Path(path).suffix.lower() == ".npy":
        with open(path, "wb") as file:  # numpy would add .npy to a name in capitals
            return np.save(file, labels)
    from PIL import Image

    Image.fromarray(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)).save(path, "PNG")


def check_picture(picture):
    """Refuse an array that is none: what `medvfm segment` takes for a volume, or finds too small."""
    if not 2 <= picture.ndim <= 4 or min(picture.shape) < 1 or picture.dtype.kind not in "buif":
        raise ValueError(
            f"An array of shape {picture.shape} and type {picture.dtype} is no picture; expected (H, W) or (H, W, C)."
        )
    if picture.ndim == 4 or (picture.ndim == 3 and picture.shape[2] > MOST_CHANNELS):
        raise ValueError(
            f"An array of shape {picture.shape} is a volume of {picture.shape[2]} slices: give one of them, (H, W), or "
            f"a picture (H, W, C) of at most {MOST_CHANNELS} channels."
        )
    if min(picture.shape[:2]) < 2:
        raise ValueError(
            f"The picture is {picture.shape[0]} x {picture.shape[1]} pixels, too small; expected at least 2 x 2."
        )
    if not np.isfinite(picture).all():
        raise ValueError("The picture has NaN or infinite values; replace them.")


def prepare(card, picture):
    """Picture (H, W) or (H, W, C) of any number type -> (the model's input (S, S, 3) float32, its frame)."""
    rule = card["preparation"]
    picture = np.asarray(picture)
    check_picture(picture)
    picture = picture[..., None] if picture.ndim == 2 else picture
    if picture.shape[-1] == 2:
        mean = picture.astype(np.float32).mean(-1, keepdims=True).astype(picture.dtype)
        picture = np.concatenate([picture, mean], -1)
    unit = to_unit(picture[..., :3])
    height, width = rule["input_shape"][:2]
    rows, columns = unit.shape[:2]
    if rule["resize"] == "longest_side":
        factor = min(height / rows, width / columns)
        scaled = max(1, int(rows * factor + 0.5)), max(1, int(columns * factor + 0.5))
    else:
        scaled = height, width
    if (unit == unit[0, 0]).all():  # resampling would round
        small = np.tile(unit[0, 0], (*scaled, 1))
    else:
        small = along(unit, weights(rows, scaled[0], rule["filter"]), 0)
        small = along(small, weights(columns, scaled[1], rule["filter"]), 1)
    small = np.repeat(small, 3, -1) if small.shape[-1] == 1 else small
    out = np.zeros((height, width, 3), np.float32)
    out[: scaled[0], : scaled[1]] = normalise(rule, small)
    frame = {"original": (rows, columns), "scaled": scaled, "input": (height, width)}
    return out, frame


def to_unit(picture):
    """Any number type -> 0..1: 8 bits on a fixed scale, floats in 0..1 as they are, others from least to greatest."""
    if picture.dtype == bool:
        return picture.astype(np.float32)
    if picture.dtype == np.uint8:
        return picture.astype(np.float32) / np.float32(255)
    if picture.dtype.kind == "f" and picture.min() >= 0 and picture.max() <= 1:
        return picture.astype(np.float32)
    low, high = float(picture.min()), float(picture.max())
    if not high > low:
        return np.zeros(picture.shape, np.float32)
    return np.clip((picture.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def normalise(rule, unit):
    """Numbers in 0..1 -> those that the model expects."""
    if rule["normalise"] == "minmax":
        low, high = unit.min(), unit.max()
        if high - low <= ROUNDING * max(abs(low), abs(high)):
            return np.zeros_like(unit)
        return (unit - low) / np.maximum(high - low, np.float32(1e-8))
    if rule["normalise"] == "unit":
        return unit
    if rule["normalise"] == "z_scores":
        shown = unit[unit > 0].astype(np.float64)
        if not shown.size:
            return unit
        deviation = shown.std()
        if deviation <= ROUNDING * shown.max():
            return (unit - shown.mean()).astype(np.float32)
        return ((unit - shown.mean()) / max(deviation, 1e-8)).astype(np.float32)
    mean, std = (np.asarray(rule[name], np.float32) for name in ("mean", "std"))
    return ((unit * np.float32(255) if rule["normalise"] == "mean_std_255" else unit) - mean) / std


def weights(size, out, kind, length=None):
    """(out, size): how much each of ``size`` pixels counts in each of ``out`` that cover the first ``length``.

    kind: "area" averages what a pixel covers, "linear" interpolates, over a wider triangle where it shrinks.
    """
    step = (float(size) if length is None else length) / out
    low, pixel = step * np.arange(out)[:, None], np.arange(size)
    if kind == "area":
        found = np.minimum(pixel + 1, low + step) - np.maximum(pixel, low)
    else:
        found = 1 - np.abs(pixel + 0.5 - (low + step / 2)) / max(step, 1.0)
    found = np.where(found < 1e-7, 0.0, found)
    return (found / found.sum(1, keepdims=True)).astype(np.float32)


def along(array, matrix, axis):
    """A matrix (out, size) applied to an axis; nothing where it would change nothing."""
    if matrix.shape[0] == matrix.shape[1]:
        return np.asarray(array, np.float32)
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)


def restore(frame, logits):
    """Logits (..., h, w) of a model -> (..., H, W) on the picture's own pixels."""
    logits = np.asarray(logits, np.float32)
    sizes = zip(logits.shape[-2:], frame["original"], frame["scaled"], frame["input"])
    rows, columns = (weights(n, out, "linear", inside * n / whole) for n, out, inside, whole in sizes)
    return (rows @ logits) @ columns.T


def as_objects(boxes, points):
    """Boxes and points as they are given -> for each object (box or None, [(x, y, label), ...])."""
    boxes, points = list(boxes), list(points)
    if points and len(points[0]) and np.ndim(points[0][0]) == 0:  # an object without points has an empty list
        points = [points]
    if boxes and points and len(boxes) != len(points):
        raise ValueError(
            f"{len(boxes)} boxes and {len(points)} lists of points: give one list for each box, or none."
        )
    count = max(len(boxes), len(points))
    if not count:
        raise ValueError("This model needs a prompt: give boxes or points.")
    boxes, points = boxes or [None] * count, points or [()] * count
    return list(zip(boxes, points))


def make_prompts(frame, objects, slots):
    """Objects in pixels of the picture -> points (Q, slots, 2), labels (Q, slots) in pixels of the model's input."""
    (height, width), (rows, columns) = frame["original"], frame["scaled"]
    scale = np.array([columns / width, rows / height])
    points = np.zeros((len(objects), slots, 2), np.float32)
    labels = np.full((len(objects), slots), ABSENT, np.int32)
    for i, (box, clicks) in enumerate(objects):
        corners = [] if box is None else [tuple(box[:2]), tuple(box[2:])]
        n = len(clicks)
        if not corners and not n:
            raise ValueError(f"Object {i + 1} has neither a box nor a point; give one, or leave it out.")
        if (corners and np.shape(box) != (4,)) or any(np.shape(click) != (3,) for click in clicks):
            raise ValueError(f"Object {i + 1}: a box is (x0, y0, x1, y1) and a point is (x, y, label).")
        if n + max(len(corners), 1) > slots:
            raise ValueError(
                f"Object {i + 1} has {n} points{' and a box' if corners else ''}, more than the {slots} slots of this "
                "export; export it with more --slots."
            )
        for k, (x, y, label) in enumerate(clicks):
            if label not in (0, 1):
                raise ValueError(f"A point has the label {label}; expected 1 inside the object or 0 outside.")
            if not (0 <= x <= width and 0 <= y <= height):
                raise ValueError(f"The point {x} {y} lies outside the {width} x {height} picture.")
            points[i, k], labels[i, k] = np.array([x, y], np.float64) * scale, label
        if corners:
            x0, y0, x1, y1 = box
            if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
                raise ValueError(
                    f"The box {tuple(box)} is inverted or reaches outside the {width} x {height} picture."
                )
            points[i, n : n + 2], labels[i, n : n + 2] = np.array(corners, np.float64) * scale, BOX
        else:
            labels[i, n] = PAD
    return points, labels
