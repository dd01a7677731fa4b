"""Read a PyTorch `.pth` file (the zip container torch writes since 1.6) without torch, without unpickling.

The container holds `<name>/data.pkl`, a pickle that describes tensors, and `<name>/data/<key>`, their
storages.  A TorchScript archive (`torch.jit.save`) is one too: of its modules the tensors are read, of its code
nothing.  `torch_opcodes` interprets the pickle; the storages are memory-mapped, so nothing is copied.
Source: torch/serialization.py (_save, _load), torch/csrc/jit/serialization.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from medvfm_jax.printable import counted, shortened
from medvfm_jax.weights.byte_budget import ByteBudget
from medvfm_jax.weights.soundness import renamed
from medvfm_jax.weights.torch_opcodes import (
    BadCheckpoint,
    Scripted,
    Tensor,
    UnsafeCheckpoint,
    read_pickle,
    scripted_tensors,
)

__all__ = ["BadCheckpoint", "UnsafeCheckpoint", "read"]

DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAX_PICKLE_BYTES = 64 << 20
SHARED = 64  # how many tensors may look at each byte of the file, on average; tied weights are two
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "teacher", "params")
PREFIXES = ("module.", "_orig_mod.")
LOCAL_HEADER = struct.Struct("<4s22xHH")
ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    OverflowError,
    EOFError,
    IndexError,
    RuntimeError,
    struct.error,
)


def read(path: Path | str) -> dict[str, np.ndarray]:
    """File -> {key: read-only array}; wrappers ({"model": ...}) opened, "module." prefixes removed.

    Raises BadCheckpoint (missing, truncated, damaged, another format, no tensors) and UnsafeCheckpoint (the
    pickle names anything besides tensors; nothing is executed).
    """
    records = _Records(Path(path))
    state = _unwrap(records.content(), records.path)
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise BadCheckpoint(
            f"{path}: entry {shortened(repr(wrong[0]))} is {type(state[wrong[0]]).__name__}, not a tensor "
            f"({len(wrong)} such entries); a state dict of tensors was expected."
        )
    return {key: records.array(key, value) for key, value in renamed(state, _strip, path).items()}


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    """The innermost dict whose values are mostly tensors, looking only behind well-known wrapper names."""
    for _ in range(4):
        if not isinstance(content, dict) or not content:
            raise BadCheckpoint(f"{path}: holds {type(content).__name__}, not a dict of tensors.")
        if any(isinstance(value, Tensor) for value in content.values()):
            break
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = content[inner]
    if not all(isinstance(key, str) for key in content) or not any(
        isinstance(v, Tensor) for v in content.values()
    ):
        raise BadCheckpoint(
            f"{path}: no state dict found; its entries are {_names(content)}; "
            f"looked behind {', '.join(WRAPPERS)}."
        )
    return content


def _names(content: dict[Any, Any]) -> str:
    return ", ".join(shortened(name) for name in sorted(map(str, content))[:8])


def _strip(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


class _Records:
    """The zip container: where every record lies in the file, checked before use."""

    def __init__(self, path: Path):
        self.path = path
        _check_kind(path)
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except NotImplementedError as error:
            raise BadCheckpoint(
                f"{path}: a zip file of a newer kind ({error}), which torch never writes; fetch the file again."
            ) from error
        except ZIP_ERRORS as error:
            raise BadCheckpoint(f"{path}: truncated or damaged ({error}); fetch the file again.") from error
        self.infos = {info.filename: info for info in infos}
        if len(self.infos) != len(infos):
            raise BadCheckpoint(f"{path}: two records of the same name; the file was tampered with.")
        self.bytes = np.memmap(path, np.uint8, mode="r")
        # The code of a TorchScript archive is compressed, and never read.
        read = [info for info in infos if info.filename.split("/")[1:2] != ["code"]]
        if sum(info.file_size for info in read) > len(self.bytes):
            raise BadCheckpoint(
                f"{path}: its records claim more bytes than the file has; they overlap or are compressed, which "
                "torch never does."
            )
        roots = [name.removesuffix("data.pkl") for name in self.infos if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise BadCheckpoint(
                f"{path}: a zip file, but not one written by torch.save (no <name>/data.pkl)."
            )
        self.root = roots[0]
        self.storages: dict[str, np.ndarray] = {}
        self.budget = ByteBudget(path, len(self.bytes), SHARED)

    def content(self) -> Any:
        order = self.root + "byteorder"
        if order in self.infos and self.record(order).tobytes() != b"little":
            raise BadCheckpoint(
                f"{self.path}: written on a big-endian machine; save it again on another one."
            )
        name = self.root + "data.pkl"
        if self.infos[name].file_size > MAX_PICKLE_BYTES:
            raise BadCheckpoint(
                f"{self.path}: data.pkl has {self.infos[name].file_size} bytes; not a state dict."
            )
        scripted = self.root + "constants.pkl" in self.infos
        content = read_pickle(self.record(name).tobytes(), str(self.path), scripted=scripted)
        if not scripted:
            return content
        if not isinstance(content, Scripted):
            raise BadCheckpoint(f"{self.path}: a TorchScript archive (it holds code) without a module.")
        try:
            return scripted_tensors(content)
        except ValueError as error:
            raise BadCheckpoint(f"{self.path}: a TorchScript archive that is no tree ({error}).") from error

    def record(self, name: str) -> np.ndarray:
        """The bytes of one record, its checksum verified."""
        info = self.infos.get(name)
        if info is None:
            raise BadCheckpoint(f"{self.path}: record {shortened(name)} is missing; the file is damaged.")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.flag_bits & 1
            or info.compress_size != info.file_size
        ):
            raise BadCheckpoint(
                f"{self.path}: record {name} is compressed or encrypted, which torch never does."
            )
        if info.header_offset < 0:
            raise BadCheckpoint(f"{self.path}: record {name} lies before the file; fetch the file again.")
        header = self.bytes[info.header_offset : info.header_offset + LOCAL_HEADER.size].tobytes()
        if len(header) != LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise BadCheckpoint(
                f"{self.path}: record {name} is not where the directory says; fetch the file again."
            )
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        data = self.bytes[start : start + info.file_size]
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise BadCheckpoint(
                f"{self.path}: record {name} is truncated or fails its checksum; fetch the file again."
            )
        return data

    def array(self, key: str, tensor: Tensor) -> np.ndarray:
        """Tensor record -> read-only array, a view of the file where the layout allows it."""
        kind, storage = tensor.storage.kind, tensor.storage
        if kind not in DTYPES:
            raise BadCheckpoint(
                f"{self.path}: {shortened(key)} has element type {shortened(kind)}, which no model here uses."
            )
        dtype = np.dtype(DTYPES[kind])
        count = self.budget.elements(key, tensor.shape, dtype.itemsize)
        data = self.storages.get(storage.key)
        if data is None:
            data = self.record(f"{self.root}data/{storage.key}")
            self.storages[storage.key] = data
        if storage.elements * dtype.itemsize != len(data):
            raise BadCheckpoint(
                f"{self.path}: the storage of {key} claims {storage.elements} {dtype.name} elements "
                f"but has {counted(len(data), 'byte')}."
            )
        if count == 0:
            return np.zeros(tensor.shape, dtype)
        # Where an axis has one element its stride is never used, and may be any number.
        strides = [stride if n > 1 else 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
        last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, strides))
        if last >= storage.elements:
            raise BadCheckpoint(
                f"{self.path}: {key} with shape {tensor.shape} reaches element {last} of a storage of "
                f"{storage.elements}."
            )
        flat = np.asarray(data).view(dtype)[tensor.offset :]
        steps = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)


def _check_kind(path: Path) -> None:
    """Recognise the usual wrong files and say what they are."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not start:
        raise BadCheckpoint(f"{path}: the file is empty.")
    if start.startswith(b"PK\x03\x04"):
        return
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        kind = "a web page, probably saved in place of the weights"
    elif start.startswith(b"version https://git-lfs"):
        kind = "a Git LFS pointer; fetch the file itself"
    elif start[:1] == b"\x80" or start[257:262] == b"ustar":
        kind = "torch's format of before 1.6; load and save it once with a current torch"
    elif start[8:9] == b"{":
        kind = "a safetensors file; give it the suffix .safetensors"
    elif start.startswith(b"\x89HDF"):
        kind = "an HDF5 file"
    else:
        kind = "no file written by torch.save"
    raise BadCheckpoint(f"{path}: {kind}; a .pth file in torch's zip format was expected.")
