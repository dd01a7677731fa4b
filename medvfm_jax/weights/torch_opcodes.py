"""Interpret the few pickle opcodes that describe a PyTorch state dict, without Python's pickle machinery.

Nothing named in the file is imported or called: the few names a state dict needs are recognised as text and
answered by the small functions below; every other name or opcode is an error.  No value is hashed, copied or
printed in a way that could take longer than the file is long.
Sources: CPython's pickletools.py (meanings), torch/serialization.py and torch/_utils.py (what torch writes).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medvfm_jax.printable import shortened
from medvfm_jax.types import MedvfmError

MAX_DIMENSIONS = 32
MAX_OBJECTS = 2_000_000  # a state dict needs about 40 opcodes per tensor


class UnsafeCheckpoint(MedvfmError):
    """A checkpoint asks for something that is not plain tensor data."""


class BadCheckpoint(MedvfmError):
    """A checkpoint is damaged, truncated or of an unknown kind."""


@dataclass(frozen=True)
class Name:
    """A global the file refers to, as text; nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A reference to one storage record: element type by torch's name, record key, number of elements."""

    kind: str
    key: str
    elements: int


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class Scripted:
    """A module of a TorchScript archive: the attributes that its description lists; its code is not looked at."""

    attributes: dict[str, Any]


class _Mark:
    """The stack's MARK."""


MARK = _Mark()
ASK = "Ask for a safetensors file or a bare state_dict."
STORAGE_NAME = re.compile(r"torch\.(\w+Storage)")
SCRIPTED_NAME = re.compile(r"__torch__(\.\w+)+")


def read_pickle(data: bytes, where: str, *, scripted: bool = False) -> Any:
    """Bytes of `data.pkl` -> dicts, lists, tuples, numbers, strings and Tensor records.

    `where` names the file in errors.  scripted: modules of a TorchScript archive become Scripted records.
    Raises UnsafeCheckpoint for an opcode or name outside the allowed set,
    BadCheckpoint for a stream that ends early or makes no sense.
    """
    machine = _Machine(data, where, scripted)
    try:
        return machine.run()
    except (
        IndexError,
        struct.error,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        raise BadCheckpoint(
            f"{where}: the description of the tensors is damaged near byte {machine.at} "
            f"({type(error).__name__}: {error}); fetch the file again."
        ) from error


class _Machine:
    """The pickle stack machine, reduced to data."""

    def __init__(self, data: bytes, where: str, scripted: bool = False):
        self.data, self.where, self.at, self.scripted = data, where, 0, scripted
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OBJECTS):
            code = self.take(1)
            if code == b".":
                (result,) = self.stack
                return result
            action = ACTIONS.get(code)
            if action is None:
                raise UnsafeCheckpoint(
                    f"{self.where}: pickle opcode {OPCODE_NAMES.get(code, code)!r} at byte {self.at - 1} has "
                    f"no place in a state dict; nothing was executed. {ASK}"
                )
            action(self)
        raise BadCheckpoint(
            f"{self.where}: more than {MAX_OBJECTS} pickle opcodes; this is not a state dict."
        )

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise BadCheckpoint(
                f"{self.where}: the description of the tensors ends early; fetch the file again."
            )
        self.at += count
        return piece

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("unexpected mark")
        return value

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:  # runs into IndexError below the bottom of the stack
            start -= 1
            if start < 0:
                raise IndexError("no mark")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def pop_tuple(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def name(self, module: str, name: str) -> None:
        found = Name(module, name)
        of_script = self.scripted and SCRIPTED_NAME.fullmatch(str(found))
        if str(found) not in CALLS and not STORAGE_NAME.fullmatch(str(found)) and not of_script:
            raise UnsafeCheckpoint(
                f"{self.where}: the file wants to use {str(found)[:100]!r}, which is not part of a plain "
                "state dict (a malicious file, a pickled module, a training checkpoint); "
                f"nothing was executed. {ASK}"
            )
        self.push(found)

    def call(self) -> None:
        arguments, callee = self.pop(), self.pop()
        if not isinstance(callee, Name) or str(callee) not in CALLS or not isinstance(arguments, tuple):
            raise UnsafeCheckpoint(
                f"{self.where}: refuses to call a {type(callee).__name__}; nothing was executed."
            )
        self.push(CALLS[str(callee)](*arguments))

    def build(self) -> None:
        """Drop attributes: torch stores `_metadata` (module versions) on the OrderedDict; keep those of a Scripted."""
        state = self.pop()
        if isinstance(self.stack[-1], Scripted):
            if type(state) is not dict or not all(isinstance(key, str) for key in state):
                raise TypeError("a scripted module whose attributes have no names")
            self.stack[-1].attributes.update(state)
            return
        if not isinstance(self.stack[-1], dict):
            raise UnsafeCheckpoint(
                f"{self.where}: sets attributes of {type(self.stack[-1]).__name__}; nothing was executed."
            )

    def new_object(self) -> None:
        """An empty Scripted, for a class of the archive itself; any other class is refused."""
        arguments, made = (self.pop(), self.pop()) if self.scripted else (None, None)
        if not isinstance(made, Name) or not SCRIPTED_NAME.fullmatch(str(made)):
            raise UnsafeCheckpoint(
                f"{self.where}: pickle opcode 'NEWOBJ' at byte {self.at - 1} has no place in a state dict; nothing was "
                f"executed. {ASK}"
            )
        if arguments != ():
            raise ValueError("a scripted module that is made with arguments")
        self.push(Scripted({}))

    def storage(self) -> None:
        kind, name, key, _location, elements = _expect(
            self.pop(), (str, Name, str, str, int), "storage reference"
        )
        match = STORAGE_NAME.fullmatch(str(name))
        if kind != "storage" or not match or elements < 0:
            raise ValueError(f"storage reference {kind!r}, {name}, {elements}")
        self.push(Storage(match[1], key, elements))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise TypeError("items for something that is not a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise TypeError(f"dict key of type {type(key).__name__}")
            if key in target:
                raise ValueError(f"the key {shortened(repr(key))} is there twice")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("append to something that is not a list")
        self.stack[-1].extend(items)


def _expect(values: Any, kinds: tuple[type, ...], what: str) -> tuple[Any, ...]:
    if not isinstance(values, tuple) or len(values) != len(kinds):
        raise ValueError(f"{what} with unexpected fields")
    for value, kind in zip(values, kinds, strict=True):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{what} with a {type(value).__name__} where {kind.__name__} was expected")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    _expect((storage, offset, shape, strides), (Storage, int, tuple, tuple), "tensor")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    _expect(shape, (int,) * len(shape), "tensor shape")
    _expect(strides, (int,) * len(shape), "tensor strides")
    if offset < 0 or min((*shape, *strides), default=0) < 0:
        raise ValueError("negative offset, size or stride")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_rest: Any) -> Tensor:
    """torch._utils._rebuild_parameter(data, requires_grad, hooks): the tensor itself."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a parameter made of {type(tensor).__name__}")
    return tensor


def _ordered(*pairs: Any) -> dict[Any, Any]:
    """collections.OrderedDict(): torch creates it empty and fills it afterwards."""
    if pairs:
        raise ValueError("an OrderedDict that is not created empty")
    return {}


def _size(values: Any = ()) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError("a torch.Size that is no shape")
    return tuple(values)


def scripted_tensors(root: Scripted) -> dict[str, Tensor]:
    """Module of a TorchScript archive -> {"path.of.attribute": Tensor}, as its ``state_dict`` names them.

    A module is visited once, so this takes no longer than the file is long.  Raises ValueError where one that holds
    tensors stands in two places or within itself: the paths would have no end, or be many.
    """
    found: dict[str, Tensor] = {}
    filled: dict[
        int, bool
    ] = {}  # of every module visited: whether it holds tensors; True while it is being visited
    left: list[tuple[str, Scripted, int | None]] = [("", root, None)]
    while left:
        path, module, before = left.pop()
        if before is not None:
            filled[id(module)] = len(found) > before
            continue
        if id(module) in filled:
            if filled[id(module)]:
                raise ValueError(f"the module {shortened(repr(path))} stands in two places")
            continue
        filled[id(module)] = True
        left.append((path, module, len(found)))
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                found[f"{path}{name}"] = value
            elif isinstance(value, Scripted):
                left.append((f"{path}{name}.", value, None))
    return found


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
}


def _stack_name(machine: _Machine) -> None:
    module, name = machine.pop_tuple(2)
    _expect((module, name), (str, str), "global")
    machine.name(module, name)


def _memoize(machine: _Machine, key: int) -> None:
    machine.memo[key] = machine.stack[-1]


def _protocol(machine: _Machine) -> None:
    version = machine.number("<B")
    if version > 5:
        raise BadCheckpoint(f"{machine.where}: pickle protocol {version} is unknown.")


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": lambda m: m.number("<Q") and None,  # FRAME: a hint about buffering
    b"(": lambda m: m.push(MARK),
    b"0": lambda m: m.pop() and None,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"\x8a": _long,
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.push(m.take(m.number("<I")).decode("utf-8")),
    b"\x8c": lambda m: m.push(m.take(m.number("<B")).decode("utf-8")),
    b"U": lambda m: m.push(m.take(m.number("<B")).decode("latin-1")),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push(m.pop_tuple(1)),
    b"\x86": lambda m: m.push(m.pop_tuple(2)),
    b"\x87": lambda m: m.push(m.pop_tuple(3)),
    b"]": lambda m: m.push([]),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_to_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items(list(m.pop_tuple(2))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"q": lambda m: _memoize(m, m.number("<B")),
    b"r": lambda m: _memoize(m, m.number("<I")),
    b"\x94": lambda m: _memoize(m, len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _stack_name,
    b"Q": lambda m: m.storage(),
    b"R": lambda m: m.call(),
    b"b": lambda m: m.build(),
    b"\x81": lambda m: m.new_object(),
}

OPCODE_NAMES = {
    b"i": "INST",
    b"o": "OBJ",
    b"\x92": "NEWOBJ_EX",
    b"P": "PERSID",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x97": "NEXT_BUFFER",
}
