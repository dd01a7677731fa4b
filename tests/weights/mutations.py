"""Files that are almost checkpoints: each yields bytes made by a seeded generator that knows the format."""

import copy
import json
import random
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from medvfm_jax.weights.torch_opcodes import ACTIONS
from tests.weights.test_onnx_initialisers import field, model, node, varint
from tests.weights.torch_files import Storage, dumps, parameter, view, write_zip

NUMBERS = (
    0, 1, 2, 3, 7, 8, 64, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, 2**200, -1, -8, -(2**63),
)  # fmt: skip
ODD = (None, True, 1.5, float("nan"), "", "x", "F32", [], [1], {}, {"a": 1}, "\x1b[2J", "y" * 3000)
ST_DTYPES = (
    "F64", "F32", "F16", "BF16", "I64", "I32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "f32",
)  # fmt: skip


def random_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert or drop a few bytes."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + draw.randrange(1, 9)] = b""
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            data[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) % 2**32)
        else:
            del data[draw.randrange(len(data) + 1) :]
    return bytes(data)


def mutated(draw: random.Random, value):
    """A JSON value with one part replaced by another of the same or another kind."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        value = dict(value)
        name = draw.choice(sorted(value))
        if draw.random() < 0.1:
            value[draw.choice(("", "x", "kind", "parts", "a" * 2000))] = value.pop(name)
        else:
            value[name] = mutated(draw, value[name])
        return value
    if isinstance(value, list) and value and draw.random() < 0.7:
        value = list(value)
        at = draw.randrange(len(value))
        value[at] = mutated(draw, value[at])
        return value * draw.choice((1, 1, 1, 2, 20)) if draw.random() < 0.2 else value
    return draw.choice((*NUMBERS, *ODD, *ST_DTYPES))


def nested(draw: random.Random) -> str:
    """JSON deeper than any parser likes."""
    depth = draw.choice((100, 5_000, 100_000))
    return draw.choice(('{"a":' * depth, "[" * depth, "[" * depth + "]" * depth))


# ---------------------------------------------------------------------------------------------------- torch


def torch_file(state: dict[str, np.ndarray], path: Path) -> Callable[[random.Random], bytes]:
    """Zip records, pickle opcodes, storages, shapes, strides and element types of a state dict."""
    keys = list(state)

    def tensors(draw: random.Random, lies: int) -> tuple[bytes, dict[str, bytes]]:
        chosen = set(draw.sample(range(len(keys)), lies))
        records, found = {}, OrderedDict()
        for index, key in enumerate(keys):
            value = np.asarray(state[key])
            storage = Storage(str(index), value)
            strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
            shape, offset = value.shape, 0
            if index in chosen:
                match draw.randrange(9):
                    case 0:
                        storage.elements = draw.choice(NUMBERS)
                    case 1:
                        storage.kind = draw.choice(
                            ("HalfStorage", "QInt8Storage", "Storage", "DoubleStorage")
                        )
                    case 2:
                        shape = tuple(draw.choice((n, draw.choice(NUMBERS))) for n in shape)
                    case 3:
                        strides = tuple(draw.choice((n, draw.choice(NUMBERS))) for n in strides)
                    case 4:
                        shape = tuple(draw.choice(NUMBERS) for _ in range(draw.choice((1, 2, 31, 33))))
                        strides = (0,) * len(shape)
                    case 5:
                        offset = draw.choice((*NUMBERS, *ODD[:4]))
                    case 6:
                        storage.key = draw.choice(("0", "../0", "", "\x1b[2J", "k" * 5000))
                    case 7:
                        key = draw.choice(
                            (keys[0], f"module.{keys[0]}", f"_orig_mod.{key}", "n" * 5000, "\x1b]0;x")
                        )
                    case _:
                        storage.data = np.array(storage.data, copy=True)
                        storage.data[: draw.randrange(1, 3)] = draw.choice((np.nan, np.inf, 3e38, 0))
            tensor = view(storage, offset, shape, strides)
            found[key] = parameter(tensor) if draw.random() < 0.1 else tensor
            records[storage.key] = storage.data.tobytes()
        wrapped = draw.choice(
            (found, {"model": found}, {"model": {"state_dict": found}}, {"odd": found}, [found])
        )
        return dumps(wrapped if lies else found), records

    codes = [code[0] for code in ACTIONS]

    def one(draw: random.Random) -> bytes:
        kind = draw.randrange(5)
        pickled, records = tensors(draw, draw.choice((1, 1, 2, 3)) if kind < 2 else 0)
        if kind == 2:  # the description itself
            pickled = bytearray(pickled)
            for _ in range(draw.choice((1, 2, 4))):
                at = draw.randrange(len(pickled))
                pickled[at : at + draw.randrange(2)] = bytes([draw.choice(codes)])
            pickled = bytes(pickled)
        elif kind == 3 and draw.random() < 0.5:
            pickled = random_bytes(draw, pickled)
        whole = write_zip(path, pickled, records).read_bytes()
        if kind == 4:  # the container
            whole = _mutated_zip(draw, whole)
        return whole

    return one


def _mutated_zip(draw: random.Random, whole: bytes) -> bytes:
    sizes = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2))):
        magic = draw.choice(list(sizes))
        starts = [at for at in range(len(whole) - 4) if whole[at] == 0x50 and whole[at : at + 4] == magic]
        at = draw.choice(starts) + draw.randrange(4, sizes[magic])
        if draw.random() < 0.5:
            data[at] = draw.choice((0, 1, 8, 46, 63, 99, 255))
        else:
            data[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) % 2**32)
    return bytes(data) if draw.random() < 0.8 else random_bytes(draw, bytes(data))


# ---------------------------------------------------------------------------------------------- safetensors


def safetensors_file(
    state: dict[str, np.ndarray], metadata: dict[str, str]
) -> Callable[[random.Random], bytes]:
    """Names, types, shapes and offsets in the header, its length, its nesting, and the numbers behind it."""
    good = save({key: np.ascontiguousarray(value) for key, value in state.items()}, metadata)
    length = struct.unpack("<Q", good[:8])[0]
    header, tail = json.loads(good[8 : 8 + length]), good[8 + length :]

    def one(draw: random.Random) -> bytes:
        kind = draw.randrange(7)
        if kind == 0:
            return random_bytes(draw, good)
        if kind == 1 and draw.random() < 0.3:
            text = nested(draw).encode()
            return struct.pack("<Q", len(text)) + text + tail
        changed, numbers = copy.deepcopy(header), bytearray(tail)
        for _ in range(draw.choice((1, 1, 2))):
            entry = changed[draw.choice([key for key in header if key != "__metadata__"])]
            if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
                continue
            if kind == 1:
                entry["dtype"] = draw.choice(ST_DTYPES)
            elif kind == 2:
                entry["shape"] = mutated(draw, entry["shape"])
            elif kind == 3:
                entry["data_offsets"] = mutated(draw, entry["data_offsets"])
            elif kind == 4:
                changed = mutated(draw, changed)
                break
            else:
                at = entry["data_offsets"][0]
                numbers[at : at + 4] = struct.pack("<f", draw.choice((np.nan, np.inf, -np.inf, 0.5)))
        text = json.dumps(changed).encode()
        if kind == 6 and draw.random() < 0.5:  # one name twice
            text = text[:-1] + b"," + text[1:]
        stated = len(text) if draw.random() < 0.9 else draw.choice(NUMBERS) % 2**64
        return struct.pack("<Q", stated) + text + bytes(numbers)

    return one


def delta_file(delta: dict[str, np.ndarray], about: dict) -> Callable[[random.Random], bytes]:
    """A delta whose metadata, adapter configuration included, or arrays are changed."""

    def one(draw: random.Random) -> bytes:
        changed, arrays = about, dict(delta)
        kind = draw.randrange(4)
        if kind < 2:
            for _ in range(draw.choice((1, 1, 2))):
                changed = mutated(draw, changed)
            text = json.dumps(changed)
        elif kind == 2:
            text = (
                nested(draw)
                if draw.random() < 0.2
                else json.dumps(mutated(draw, {"adapter": about["adapter"]}))
            )
        else:
            text, name = json.dumps(about), draw.choice(sorted(arrays))
            value = arrays.pop(name)
            name = draw.choice((name, name.split(":")[0], name + ":x", name.replace(":", "/"), "a::b"))
            arrays[name] = draw.choice((value, value * np.nan, value.astype(np.int32), value[..., :-1]))
        stored = {"format": "medvfm-delta", "medvfm": text}
        if draw.random() < 0.05:
            stored.pop(draw.choice(sorted(stored)))
        data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, stored)
        return random_bytes(draw, data) if draw.random() < 0.1 else data

    return one


# ----------------------------------------------------------------------------------------------------- ONNX


def onnx_file(state: dict[str, np.ndarray]) -> Callable[[random.Random], bytes]:
    """Tags, wire types, lengths and dimensions of initialisers and nodes."""
    keys = list(state)

    def tensor(draw: random.Random, key: str, lie: bool) -> bytes:
        value = np.asarray(state[key])
        dims, kind, raw = list(value.shape), 1, value.tobytes()
        if lie:
            match draw.randrange(8):
                case 0:
                    dims = [
                        abs(draw.choice(NUMBERS)) % 2**64 for _ in range(draw.choice((1, 2, 4, 40, 3000)))
                    ]
                case 1:
                    kind = draw.choice((0, 2, 6, 7, 9, 10, 11, 16, 17, 99, 2**63))
                case 2:
                    raw = raw[: draw.randrange(len(raw) + 1)]
                case 3:  # a number where bytes belong
                    number = varint(draw.choice((8, 9, 5, 1)) << 3) + varint(
                        abs(draw.choice(NUMBERS)) % 2**64
                    )
                    return field(7, field(5, number)) if draw.random() < 0.1 else field(5, number)
                case 4:
                    key = draw.choice((keys[0], "onnx::MatMul_1", "\x1b[2J", "n" * 5000, ""))
                case 5:
                    return field(draw.choice((1, 5)), abs(draw.choice(NUMBERS)) % 2**64)
                case 6:
                    raw = np.full(value.shape, draw.choice((np.nan, np.inf)), np.float32).tobytes()
                case _:
                    dims = [draw.choice((n, draw.choice((0, 1, 2**31, 2**63)))) for n in dims]
        packed = draw.random() < 0.3
        text = field(1, b"".join(map(varint, dims))) if packed else b"".join(field(1, n) for n in dims)
        return field(5, text + field(2, kind) + field(8, key) + field(9, raw))

    def one(draw: random.Random) -> bytes:
        lies = set(draw.sample(range(len(keys)), draw.choice((0, 1, 1, 2))))
        parts = [tensor(draw, key, index in lies) for index, key in enumerate(keys)]
        for _ in range(draw.choice((0, 0, 3, 200))):
            names = [draw.choice((*keys, "onnx::MatMul_1", "x", "y")) for _ in range(3)]
            parts.append(node(draw.choice(("MatMul", "Add", "Concat")), names[:2], names[2]))
        data = model(*parts)
        return random_bytes(draw, data) if not lies or draw.random() < 0.3 else data

    return one
