import pickle
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from medvfm_jax.weights import torch_zip
from medvfm_jax.weights.read import read_state
from medvfm_jax.weights.torch_zip import BadCheckpoint, UnsafeCheckpoint
from tests.weights.torch_files import Named, Storage, dumps, parameter, save, view, write_zip

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.uint8, np.bool_]
)
def test_every_element_type(tmp_path, dtype):
    value = (rng.normal(size=(3, 4, 5)) * 3).astype(dtype)
    read = torch_zip.read(save(tmp_path / "a.pth", {"a.weight": value, "a.scalar": value[0, 0, 0]}))
    assert read["a.weight"].dtype == value.dtype
    np.testing.assert_array_equal(read["a.weight"], value)
    assert read["a.scalar"].shape == ()
    assert not read["a.weight"].flags.writeable


def test_views_share_storages_with_offset_and_strides(tmp_path):
    data = np.arange(24, dtype=np.float32)
    storage = Storage("7", data)
    state = OrderedDict(
        row=view(storage, 6, (6,), (1,)),
        transposed=parameter(view(storage, 0, (6, 4), (1, 6))),
        every_other=view(storage, 1, (3, 2), (8, 2)),
        empty=view(storage, 0, (0, 5), (5, 1)),
        repeated=view(storage, 3, (4, 2), (0, 1)),
    )
    read = torch_zip.read(write_zip(tmp_path / "v.pth", dumps(state), {"7": data.tobytes()}))
    np.testing.assert_array_equal(read["row"], data[6:12])
    np.testing.assert_array_equal(read["transposed"], data.reshape(4, 6).T)
    np.testing.assert_array_equal(read["every_other"], [[1, 3], [9, 11], [17, 19]])
    assert read["empty"].shape == (0, 5)
    np.testing.assert_array_equal(read["repeated"], np.tile(data[3:5], (4, 1)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"model": tensors, "epoch": 3, "loss": 0.25, "args": [1, None, True, "x", 2**40]},
        lambda tensors: {"state_dict": dict(tensors)},
        lambda tensors: {"model": {"state_dict": tensors}},
        lambda tensors: OrderedDict((f"module.{k}", v) for k, v in tensors.items()),
    ],
)
def test_wrappers_and_prefixes(tmp_path, wrap):
    state = {"a.weight": np.ones(2, np.float32), "b.bias": np.zeros(3, np.float32)}
    read = torch_zip.read(save(tmp_path / "w.pth", state, wrap))
    assert list(read) == list(state)


def test_metadata_attribute_of_a_state_dict_is_dropped(tmp_path):
    class State(OrderedDict):
        __module__, __qualname__ = "collections", "OrderedDict"

        def __reduce__(self):
            return type(self), (), {"_metadata": OrderedDict(x={"version": 1})}, None, iter(self.items())

    storage = Storage("0", np.ones(2, np.float32))
    pickled = dumps(State(w=view(storage, 0, (2,), (1,))))
    assert b"b" in pickled
    read = torch_zip.read(write_zip(tmp_path / "m.pth", pickled, {"0": storage.data.tobytes()}))
    assert list(read) == ["w"]


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
)
def test_malicious_file_runs_nothing(tmp_path, module, name):
    marker = tmp_path / "pwned"
    bomb = Named(module, name, (f"touch {marker}",))
    for content in (bomb, {"model": bomb}, OrderedDict(w=bomb)):
        path = write_zip(tmp_path / "evil.pth", dumps(content), {})
        with pytest.raises(UnsafeCheckpoint, match=rf"{module}\.{name}.*nothing was executed"):
            torch_zip.read(path)
    assert not marker.exists()


def test_the_malicious_file_would_have_run(tmp_path):
    """The control: Python's own unpickler does execute what the reader refuses."""
    marker = tmp_path / "pwned"
    pickle.loads(dumps(Named("os", "system", (f"touch {marker}",))))
    assert marker.exists()


@pytest.mark.parametrize(
    ("code", "opcode"),
    [
        (b"\x80\x02(S'x'\nios\nsystem\n.", "S"),
        (b"\x80\x02(U\x01xios\nsystem\n.", "INST"),
        (b"\x80\x02)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04P1\n.", "PERSID"),
    ],
)
def test_unknown_opcodes_are_named(tmp_path, code, opcode):
    with pytest.raises(UnsafeCheckpoint, match=opcode):
        torch_zip.read(write_zip(tmp_path / "x.pth", code, {}))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cos\nsystem\n",  # name only
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # the same by STACK_GLOBAL
        b"\x80\x02U\x01xU\x01y\x85R.",  # calls a string
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # a storage type is no function
        b"\x80\x02K\x01}b.",  # attributes of a number
    ],
)
def test_refused_without_execution(tmp_path, code):
    with pytest.raises(UnsafeCheckpoint):
        torch_zip.read(write_zip(tmp_path / "x.pth", code, {}))


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x80\x02",
        b".",
        b"t.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02h\x05.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02}}K\x01s.",
        b"\x80\x02NQ.",
        b"\x80\x09N.",
        b"\x80\x02}.",
        b"\x80\x02K\x01.",
        b"ctorch",
    ],
)
def test_damaged_descriptions_are_one_sentence(tmp_path, code):
    with pytest.raises(BadCheckpoint):
        torch_zip.read(write_zip(tmp_path / "x.pth", code, {}))


def test_nested_tuples_do_not_explode(tmp_path):
    """Each level refers to the last twice: printing or hashing the value would never end."""
    level = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200))
    nested = b"\x80\x02)q\x00" + level
    for end in (b")R.", b".", b"}q\xfeh\xc8h\xc8s."):
        with pytest.raises((BadCheckpoint, UnsafeCheckpoint)):
            torch_zip.read(write_zip(tmp_path / "x.pth", nested + end, {}))


def test_lying_storages(tmp_path):
    data = np.ones(8, np.float32)

    def attempt(tensor, records):
        torch_zip.read(write_zip(tmp_path / "x.pth", dumps({"w": tensor}), records))

    with pytest.raises(BadCheckpoint, match="claims 9 float32 elements but has 32 bytes"):
        attempt(view(Storage("0", data, elements=9), 0, (9,), (1,)), {"0": data.tobytes()})
    with pytest.raises(BadCheckpoint, match="reaches element 8 of a storage of 8"):
        attempt(view(Storage("0", data), 1, (8,), (1,)), {"0": data.tobytes()})
    with pytest.raises(BadCheckpoint, match="missing"):
        attempt(view(Storage("0", data), 0, (8,), (1,)), {})
    with pytest.raises(BadCheckpoint, match="absurdly large"):
        attempt(view(Storage("0", data), 0, (2**40,), (0,)), {"0": data.tobytes()})
    with pytest.raises(BadCheckpoint, match="negative"):
        attempt(view(Storage("0", data), 0, (8,), (-1,)), {"0": data.tobytes()})
    with pytest.raises(BadCheckpoint, match="ComplexFloatStorage"):
        attempt(view(Storage("0", data, kind="ComplexFloatStorage"), 0, (8,), (1,)), {"0": data.tobytes()})


def test_every_truncation_is_an_error(tmp_path):
    whole = save(tmp_path / "whole.pth", {"w": rng.normal(size=(20, 20)).astype(np.float32)}).read_bytes()
    for length in range(0, len(whole), 37):
        path = tmp_path / "cut.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            torch_zip.read(path)


def test_flipped_bits_never_pass_unnoticed(tmp_path):
    value = rng.normal(size=(16, 16)).astype(np.float32)
    whole = save(tmp_path / "whole.pth", {"w": value}).read_bytes()
    for position in range(0, len(whole), 11):
        path = tmp_path / "flip.pth"
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            read = torch_zip.read(path)
        except (BadCheckpoint, UnsafeCheckpoint):
            continue
        np.testing.assert_array_equal(read["w"], value)  # a bit of zip bookkeeping, not of the content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before 1.6"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\x10\0\0\0\0\0\0\0{}              ", "safetensors"),
        (b"garbage" * 100, "no file written by torch"),
    ],
)
def test_other_files_are_recognised(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        torch_zip.read(path)
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        torch_zip.read(tmp_path / "missing.pth")


def test_other_zip_files_are_recognised(tmp_path):
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("hello.txt", "x")
    with pytest.raises(BadCheckpoint, match="not one written by torch"):
        torch_zip.read(tmp_path / "plain.zip")
    pickled = dumps({"w": view(Storage("0", np.ones(2, np.float32)), 0, (2,), (1,))})
    storages = {"0": np.ones(2, np.float32).tobytes()}
    for options, message in (
        ({"extra": ("archive/constants.pkl",)}, "TorchScript"),
        ({"byteorder": "big"}, "big-endian"),
        ({"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    ):
        with pytest.raises(BadCheckpoint, match=message):
            torch_zip.read(write_zip(tmp_path / "x.pth", pickled, storages, **options))


def test_entries_that_are_no_tensors_are_named(tmp_path):
    path = save(tmp_path / "x.pth", {"w": np.ones(2, np.float32)}, lambda t: OrderedDict(t, epoch=3))
    with pytest.raises(BadCheckpoint, match="'epoch' is int"):
        torch_zip.read(path)
    path = save(tmp_path / "y.pth", {"w": np.ones(2, np.float32)}, lambda t: {"generator": t, "step": 1})
    with pytest.raises(BadCheckpoint, match="entries are generator, step"):
        torch_zip.read(path)


def attempt(tmp_path, tensor, data):
    return torch_zip.read(write_zip(tmp_path / "x.pth", dumps({"w": tensor}), {"0": data.tobytes()}))


def test_huge_strides_and_shapes_are_refused(tmp_path):
    data = np.ones(8, np.float32)
    storage = Storage("0", data)
    for shape, strides in (
        ((2, 4), (2**62, 1)),
        ((2,), (2**200,)),
        ((2**63,), (0,)),
        ((0, 2**62), (1, 1)),
        ((2,) * 32, (0,) * 32),
        ((100_000,), (0,)),  # views of one number, more of them than the file has bytes
    ):
        with pytest.raises(BadCheckpoint, match=r"claims shape|reaches element"):
            attempt(tmp_path, view(storage, 0, shape, strides), data)
    read = attempt(tmp_path, view(storage, 0, (1, 8), (2**200, 1)), data)  # a stride that is never used
    np.testing.assert_array_equal(read["w"], data[None])


def test_a_zip_file_of_a_newer_kind_is_a_sentence(tmp_path):
    path = save(tmp_path / "x.pth", {"w": np.ones(2, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99  # version needed to extract: 9.9
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"newer kind \(zip file version 9\.9\)"):
        torch_zip.read(path)


def test_records_that_overlap_are_refused(tmp_path):
    """Many records of the same megabyte would be checked one after the other for ever."""
    path = save(tmp_path / "x.pth", {"w": np.ones(100, np.float32)})
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02", data.index(b"archive/byteorder", data.index(b"PK\x01\x02")))
    claimed = (len(data)).to_bytes(4, "little")
    path.write_bytes(data[: entry + 20] + claimed + claimed + data[entry + 28 :])
    with pytest.raises(BadCheckpoint, match="claim more bytes than the file has"):
        torch_zip.read(path)


def test_keys_that_become_equal_are_refused(tmp_path):
    state = {"module.a.weight": np.ones(2, np.float32), "a.weight": np.zeros(2, np.float32)}
    with pytest.raises(BadCheckpoint, match=r"module\.a\.weight and a\.weight are both a\.weight"):
        torch_zip.read(save(tmp_path / "x.pth", state))
    item = b"X\x01\x00\x00\x00wN"
    with pytest.raises(BadCheckpoint, match="'w' is there twice"):
        torch_zip.read(write_zip(tmp_path / "x.pth", b"\x80\x02}(" + item + item + b"u.", {}))


@pytest.mark.parametrize("key", ["k" * 2_000_000, "a name " * 300_000])
def test_a_key_of_megabytes_is_not_printed_whole(tmp_path, key):
    for content in ({key: 1, "w": view(Storage("0", np.ones(2, np.float32)), 0, (2,), (1,))}, {key: 1}):
        path = write_zip(tmp_path / "x.pth", dumps(content), {"0": np.ones(2, np.float32).tobytes()})
        with pytest.raises(BadCheckpoint, match="characters") as caught:
            torch_zip.read(path)
        assert len(str(caught.value)) < 1500


def test_a_path_longer_than_the_system_allows_is_a_sentence(tmp_path):
    for suffix in (".pth", ".safetensors", ".onnx"):
        with pytest.raises(BadCheckpoint, match="File name too long"):
            read_state(tmp_path / ("n" * 300 + suffix))


def scripted(tmp_path, root):
    data = np.arange(2, dtype=np.float32)
    return write_zip(tmp_path / "s.pt", root, {"0": data.tobytes()}, extra=("archive/constants.pkl",))


def test_of_a_torchscript_archive_the_tensors_are_read(tmp_path):
    """The opcodes are written by hand, as torch.jit.save has them: GLOBAL, EMPTY_TUPLE, NEWOBJ, a dict, BUILD."""
    path = scripted(
        tmp_path,
        script({"training": b"\x89", "conv": script({"weight": TENSOR}, "__torch__.nn\nConv")}) + b".",
    )
    found = torch_zip.read(path)
    assert list(found) == ["conv.weight"]
    np.testing.assert_array_equal(found["conv.weight"], [0, 1])


def test_scripted_modules_that_are_no_tree_are_refused(tmp_path):
    twice = script({"a": script({"w": TENSOR}, "__torch__\nM") + b"q\x07", "b": b"h\x07"})
    with pytest.raises(BadCheckpoint, match="two places"):
        torch_zip.read(scripted(tmp_path, twice + b"."))
    itself = b"c__torch__\nM\n)\x81q\x07}(" + text("me") + b"h\x07" + text("w") + TENSOR + b"ub"
    with pytest.raises(BadCheckpoint, match="two places"):
        torch_zip.read(scripted(tmp_path, itself + b"."))


@pytest.mark.parametrize("name", ["os\nsystem", "__torch__x\nM", "__torch__\nM.x y", "builtins\neval"])
def test_only_classes_of_the_archive_are_modules(tmp_path, name):
    with pytest.raises(UnsafeCheckpoint, match="nothing was executed"):
        torch_zip.read(scripted(tmp_path, script({"w": TENSOR}, name) + b"."))


def test_modules_have_no_place_in_a_state_dict(tmp_path):
    data = np.arange(2, dtype=np.float32)
    path = write_zip(tmp_path / "x.pth", script({"w": TENSOR}) + b".", {"0": data.tobytes()})
    with pytest.raises(UnsafeCheckpoint, match="nothing was executed"):
        torch_zip.read(path)


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def script(attributes, name="__torch__\nNet"):
    items = b"".join(text(key) + value for key, value in attributes.items())
    return b"c" + name.encode() + b"\n)\x81}(" + items + b"ub"


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x02tQK\x00(K\x02t(K\x01t\x89ccollections\nOrderedDict\n)RtR"
)
