"""Write `.pth` files without torch: the pickle module only ever writes here, it never reads."""

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


class Named:
    """Something that pickles as the global `module name` called with `arguments`."""

    def __init__(self, module: str, name: str, arguments: tuple | None):
        self.target, self.arguments = (module, name), arguments

    def __reduce__(self):
        return stand_in(*self.target), self.arguments


def stand_in(module: str, name: str):
    """A function that pickle writes as `module.name`; the real module is never imported for it."""

    def function(*_):
        raise AssertionError("called")

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


class Storage:
    """A storage record to be written: flat data, or a claim about it."""

    def __init__(self, key: str, data: np.ndarray, elements: int | None = None, kind: str | None = None):
        self.key, self.data = key, np.ascontiguousarray(data).ravel()
        self.elements = self.data.size if elements is None else elements
        self.kind = kind or STORAGES[self.data.dtype]


def view(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Named:
    rest = (False, OrderedDict())
    return Named("torch._utils", "_rebuild_tensor_v2", (storage, offset, shape, strides, *rest))


def parameter(tensor: Named) -> Named:
    return Named("torch._utils", "_rebuild_parameter", (tensor, True, OrderedDict()))


class Writer(pickle._Pickler):  # the Python one: it lets save_global be replaced
    """Pickler that knows storages as persistent ids and writes stand-ins by name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return ("storage", stand_in("torch", thing.kind), thing.key, "cpu", thing.elements)
        return None

    def save_global(self, thing, name=None):
        self.write(b"c" + f"{thing.__module__}\n{name or thing.__qualname__}\n".encode())
        self.memoize(thing)

    dispatch[types.FunctionType] = save_global
    dispatch[type] = save_global


def dumps(content) -> bytes:
    buffer = io.BytesIO()
    writer = Writer(buffer, protocol=2)
    writer.dump(content)
    return buffer.getvalue()


def write_zip(path: Path, pickled: bytes, storages: dict[str, bytes], **options) -> Path:
    """The container torch.save writes."""
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", options.get("byteorder", "little"))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
        for name in options.get("extra", ()):
            archive.writestr(name, b"")
    return path


def save(path: Path, state: dict[str, np.ndarray], wrap=lambda tensors: tensors) -> Path:
    """Arrays -> `.pth`, as torch.save(wrap(state_dict)) would write them."""
    storages, tensors = {}, OrderedDict()
    for index, (key, value) in enumerate(state.items()):
        value = np.asarray(value)
        storage = Storage(str(index), value)
        storages[storage.key] = storage.data.tobytes()
        strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
        tensors[key] = view(storage, 0, value.shape, strides)
    return write_zip(path, dumps(wrap(tensors)), storages)
