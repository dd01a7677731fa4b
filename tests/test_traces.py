import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import executables, traces

WORDS = ["a function", {"option": 1}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path))
    return tmp_path / "traced"


def counted(function):
    """The function, and a list that grows when it is traced."""
    calls = []

    def traced(*inputs):
        calls.append(1)
        return function(*inputs)

    return traced, calls


def scaled(params, x):
    return {"y": x @ params["w"] + params["b"]}


def inputs(rows=2):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 4)).astype(np.float32), "b": np.ones(4, np.float32)}
    return params, rng.normal(size=(rows, 3)).astype(np.float32)


def test_a_program_is_traced_once_and_computes_the_same_from_disk():
    function, calls = counted(scaled)
    first = traces.program(WORDS, function, *inputs())(*inputs())
    assert len(calls) == 1
    again = traces.program(WORDS, function, *inputs())(*inputs())
    assert len(calls) == 1
    np.testing.assert_array_equal(first["y"], again["y"])
    params, x = inputs()
    np.testing.assert_allclose(again["y"], x @ params["w"] + params["b"], rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "rows"), [(["a function", {"option": 2}], 2), (WORDS, 5)], ids=["words", "shapes"]
)
def test_other_words_and_other_shapes_are_other_programs(words, rows):
    traces.program(WORDS, scaled, *inputs())
    function, calls = counted(lambda params, x: {"y": 2 * x})
    found = traces.program(words, function, *inputs(rows))(*inputs(rows))
    assert len(calls) == 1
    np.testing.assert_array_equal(found["y"], 2 * inputs(rows)[1])


@pytest.fixture
def another_version(monkeypatch):
    """What a process that imported another source, or another flax, has."""

    def begin(change):
        change(monkeypatch)
        traces._stamp.cache_clear()

    yield begin
    monkeypatch.undo()
    traces._stamp.cache_clear()


def _edited(monkeypatch):
    monkeypatch.setattr(traces, "_source", lambda: [("models/model.py", 1, 2)])
    monkeypatch.setattr(traces, "_SOURCE", [("models/model.py", 1, 2)])


def _newer_flax(monkeypatch):
    monkeypatch.setattr(traces.metadata, "version", lambda name: "99")


@pytest.mark.parametrize("change", [_edited, _newer_flax])
def test_another_version_of_the_source_traces_anew(another_version, change):
    traces.program(WORDS, scaled, *inputs())
    function, calls = counted(scaled)
    another_version(change)
    traces.program(WORDS, function, *inputs())
    assert len(calls) == 1


def test_a_process_whose_source_was_edited_since_it_began_keeps_and_reads_nothing(monkeypatch, folder):
    traces.shapes(["kept"], lambda: {"a": jax.ShapeDtypeStruct((1,), "float32")})
    monkeypatch.setattr(traces, "_source", lambda: [])
    assert traces.shapes(["kept"], lambda: {"a": jax.ShapeDtypeStruct((2,), "float32")})["a"].shape == (2,)
    monkeypatch.undo()
    monkeypatch.setenv("MEDVFM_CACHE", str(folder.parent))
    assert traces.shapes(["kept"], lambda: pytest.fail("traced"))["a"].shape == (1,)


def test_a_file_of_another_source_is_not_read(another_version, folder):
    traces.shapes(["kept"], lambda: {"a": jax.ShapeDtypeStruct((1,), "float32")})
    (old,) = folder.iterdir()
    another_version(_edited)
    traces.shapes(["other"], lambda: {})
    (new,) = (f for f in folder.iterdir() if f != old)
    for file in old.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    assert traces.shapes(["kept"], lambda: {"a": jax.ShapeDtypeStruct((2,), "float32")})["a"].shape == (2,)


@pytest.mark.parametrize("kind", ["program", "json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_files_are_traced_again_and_replaced(folder, kind, damage):
    def make():
        if kind == "json":
            found = traces.shapes(WORDS, function)
            return found["w"].shape
        return traces.program(WORDS, lambda *x: function(*x), *inputs())(*inputs())["y"].shape

    function, calls = counted(
        (lambda: {"w": jax.ShapeDtypeStruct((2, 3), "float32")}) if kind == "json" else scaled
    )
    expected = make()
    (file,) = folder.rglob(f"*.{kind}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-7]), "empty": b""}[damage])
    assert make() == expected
    assert len(calls) == 2
    assert make() == expected
    assert len(calls) == 2
    assert not list(folder.rglob("*.tmp"))


def test_a_kept_program_that_xla_cannot_run_is_compiled_again(monkeypatch):
    traces.program(WORDS, scaled, *inputs())

    def incomplete(*_):
        raise jax.errors.JaxRuntimeError("NOT_FOUND: Function fusion.55 not found")

    monkeypatch.setattr(executables, "load", lambda *_: incomplete)
    function, calls = counted(scaled)
    announced = []
    run = traces.program(WORDS, function, *inputs(), announce=lambda: announced.append(1))
    params, x = inputs()
    for _ in range(2):
        np.testing.assert_allclose(run(params, x)["y"], x @ params["w"] + params["b"], rtol=1e-5)
    assert len(calls) == len(announced) == 1


def test_kept_arrays_come_back_bit_by_bit_and_aligned(folder, monkeypatch):
    rng = np.random.default_rng(0)
    given = {"a": {"b": rng.normal(size=(3, 5)).astype(np.float32), "c": np.arange(7, dtype=np.int8)}}
    given["scalar"], given["none"] = np.float32(2.5).reshape(()), np.zeros((0, 4), np.float32)
    assert traces.arrays(WORDS) is None
    traces.keep_arrays(WORDS, given)
    found = traces.arrays(WORDS)
    assert jax.tree.structure(found) == jax.tree.structure(given)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(given), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_array_equal(left, right)
        assert left.size == 0 or left.ctypes.data % 64 == 0  # or XLA copies it
    (file,) = folder.rglob("*.arrays")
    file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    assert traces.arrays(WORDS) is None
    monkeypatch.setattr(traces, "LARGEST", 10)
    traces.keep_arrays(["others"], given)
    assert traces.arrays(["others"]) is None


def test_shapes_come_back_as_they_were():
    made = {"a": {"b": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, "c": jax.ShapeDtypeStruct((), jnp.int32)}
    assert traces.shapes(WORDS, lambda: made) == made
    again = traces.shapes(WORDS, lambda: 1 / 0)
    assert again == made
    assert list(again) == ["a", "c"]


def test_what_cannot_be_exported_runs_all_the_same(folder):
    def called_back(x):
        return {
            "y": jax.pure_callback(lambda x: np.asarray(x) + 1, jax.ShapeDtypeStruct((2,), jnp.float32), x)
        }

    found = traces.program(WORDS, called_back, np.zeros(2, np.float32))(np.zeros(2, np.float32))
    np.testing.assert_array_equal(found["y"], [1, 1])
    assert not list(folder.rglob("*.program"))


def test_without_words_nothing_is_kept(folder):
    found = traces.program(None, scaled, *inputs())(*inputs())
    assert found["y"].shape == (2, 4)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "file"))
    assert traces.program(WORDS, scaled, *inputs())(*inputs())["y"].shape == (2, 4)


def keep(words, age):
    """Keep shapes, and make them look unused for so many seconds."""
    traces.shapes(words, abstract)
    path = traces._path(words, "json")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_was_not_used_for_longest_goes_first_where_it_is_too_much(monkeypatch):
    first, second, third = (keep(["words", i], 100 - i) for i in range(3))
    traces.shapes(["words", 0], pytest.fail)  # used again
    monkeypatch.setattr(traces, "MOST", 3 * first.stat().st_size)
    fourth = keep(["words", 3], 0)
    assert [path.exists() for path in (first, second, third, fourth)] == [True, False, True, True]


def test_what_was_not_used_for_a_month_goes_and_so_does_what_a_killed_process_left(folder, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(traces, "_stamp", lambda: "another version")
        old, recent = keep(["words", 0], 31 * 24 * 3600), keep(["words", 1], 29 * 24 * 3600)
    leftover, being_written = recent.with_suffix(".1.tmp"), recent.with_suffix(".2.tmp")
    leftover.write_bytes(b"")
    being_written.write_bytes(b"")
    os.utime(leftover, (time.time() - 7200,) * 2)
    keep(WORDS, 0)
    assert [path.exists() for path in (old, recent, leftover, being_written)] == [False, True, False, True]
    recent.unlink()
    being_written.unlink()
    keep(["words", 2], 0)
    assert [f.name for f in folder.iterdir()] == [traces._stamp()], "empty folders go too"


def test_the_order_of_words_matters():
    """That of the parts of a chain of adapters does."""
    traces.program([{"a": 1, "b": 2}], scaled, *inputs())
    function, calls = counted(scaled)
    traces.program([{"b": 2, "a": 1}], function, *inputs())
    assert calls


def abstract():
    return {"a": {"b": jax.ShapeDtypeStruct((2, 3), np.float32)}}


@pytest.mark.parametrize(
    "content", [b"[1]", b"garbage", b'{"a": 3}', b'{"a": [[2], "no type"]}', b"[" * 100_000, b"\xff"]
)
def test_kept_shapes_of_another_form_are_traced_again(folder, content):
    """With the right digest, so only the form is wrong."""
    assert traces.shapes(WORDS, abstract) == abstract()
    (path,) = folder.rglob("*.json")
    path.write_bytes(content + traces._digest(path, content))
    assert traces.shapes(WORDS, abstract) == abstract()
    assert traces.shapes(WORDS, pytest.fail) == abstract()  # and kept anew


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
    traces.shapes(WORDS, abstract)
    (path,) = folder.rglob("*.json")
    path.unlink()
    os.mkfifo(path)
    assert traces.shapes(WORDS, abstract) == abstract()
    assert path.is_file()
