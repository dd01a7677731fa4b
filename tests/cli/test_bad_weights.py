"""Checkpoints, deltas and runs that are none or belong elsewhere: one sentence, and nothing in them runs."""

import pickle
import shutil

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.runs import run_directory
from medvfm_jax.weights import registry, torch_state
from tests.cli.commands import LITE, SAM, Evil, adapt_words, contents
from tests.weights.torch_files import Named, dumps, save, write_zip

BOX = ("--box", 3, 2, 10, 12)


def weight_file(folder, kind):
    """A file that is no checkpoint of SAM, and words of the sentence about it."""
    path = folder / "weights.pth"
    good = save(folder / "good.pth", torch_state(weights.load(LITE)[1]))
    content = good.read_bytes()
    good.unlink()
    command = ("os", "system", (f"touch {folder}/pwned",))
    if kind == "missing":
        return path, "No such file"
    if kind == "a folder":
        path.mkdir()
        return path, "weights.pth"
    if kind == "malicious":
        return write_zip(path, dumps(Named(*command)), {}), "'os.system'"
    if kind == "malicious among tensors":
        state = {"a.weight": np.zeros(2, np.float32)}
        wrapped = save(
            path, state, lambda tensors: {**tensors, "b.weight": Named("builtins", "exec", ("1/0",))}
        )
        return wrapped, "'builtins.exec'"
    if kind == "malicious, a bare pickle":
        path.write_bytes(pickle.dumps(Evil(folder)))
        return path, "weights.pth"
    if kind == "another model":
        return save(path, torch_state(weights.load(LITE)[1])), "does not fit the model, nothing was loaded"
    if kind == "a cut safetensors file":
        path = folder / "weights.safetensors"
        weights.save_own(path, weights.load(SAM)[1], SAM)
        path.write_bytes(path.read_bytes()[:-5])
        return path, "cannot be read as safetensors"
    written = {
        "empty": (b"", "the file is empty"),
        "cut": (content[: len(content) // 2], "truncated or damaged"),
        "cut after a few bytes": (content[:3], "weights.pth"),
        "text": (b"hello, world\n" * 40, "no file written by torch.save"),
        "damaged inside": (content[:2000].replace(b"\x00\x00", b"\x07\x07") + content[2000:], "weights.pth"),
    }
    data, words = written[kind]
    path.write_bytes(data)
    return path, words


WEIGHT_FILES = [
    "missing", "a folder", "empty", "cut", "cut after a few bytes", "text", "damaged inside", "malicious",
    "malicious among tensors", "malicious, a bare pickle", "another model", "a cut safetensors file",
]  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHT_FILES)
def test_weights_that_are_none_are_refused_and_nothing_in_them_runs(medvfm, white, tmp_path, kind):
    path, words = weight_file(tmp_path, kind)
    before = contents(tmp_path)
    if kind in ("malicious", "cut", "another model"):  # the others would take the same way
        asked = ("--model", SAM, "--weights", path)
        medvfm("segment", white, *asked, *BOX, "--out", tmp_path / "m.png").refused(words, code=1)
    medvfm("weights", "convert", path, "--to", SAM, "--out", tmp_path / "c.safetensors").refused(
        words, code=1
    )
    if kind != "another model":  # which is a good file of that model
        result = medvfm("weights", "verify", path)
        assert result.code == 1
        assert result.err.count("\n") == 1
    assert contents(tmp_path) == before


def test_the_malicious_file_of_these_tests_is_one(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path))).close()
    assert (tmp_path / "pwned").exists()


def test_training_on_bad_weights_leaves_no_run_behind(medvfm, cells, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv(
        "MEDVFM_CACHE", str(tmp_path_factory.mktemp("cache"))
    )  # what others checked says nothing here
    for kind in ("malicious", "cut"):
        path, words = weight_file(tmp_path, kind)
        medvfm(*adapt_words(cells, tmp_path / "run", weights=path)).refused(words, code=1)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.pth"]


def test_a_checkpoint_of_another_model_is_told_in_a_few_words(medvfm, weight_files, white, tmp_path):
    asked = ("--model", SAM, "--weights", weight_files[LITE])
    sentence = medvfm("segment", white, *asked, *BOX, "--out", tmp_path / "m.png").refused(
        f"(parameters of {LITE})", "`medvfm weights verify` tells", code=1
    )
    assert len(sentence.replace(str(weight_files[LITE]), "")) < 1000


def test_files_of_the_right_size_with_another_hash(medvfm, white, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    wrong = tmp_path / "lite_medsam.pth"
    with open(wrong, "wb") as file:
        file.truncate(registry.WEIGHTS["lite-medsam"].size)
    medvfm("weights", "get", "lite-medsam", "--from", wrong).refused("has sha256", "was expected", code=1)
    assert not list((tmp_path / "cache").rglob("*.pth"))
    cached = registry.cached_path(registry.WEIGHTS["mobile-sam"])
    cached.parent.mkdir(parents=True)
    with open(cached, "wb") as file:
        file.truncate(registry.WEIGHTS["mobile-sam"].size)
    words = ("segment", white, "--model", "mobile-sam", *BOX, "--out", tmp_path / "m.png")
    medvfm(*words).refused("has sha256", "was expected", "delete it and fetch it again", code=1)
    assert not (tmp_path / "m.png").exists()


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory):
    """File with base weights that differ from those of the run in one layer."""
    _, params = weights.load(SAM)
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = leaves[-1] + 1e-3
    path = tmp_path_factory.mktemp("other") / "weights.safetensors"
    weights.save_own(path, jax.tree.unflatten(tree, leaves), SAM)
    return path


def test_a_delta_made_for_other_base_weights(medvfm, trained, other_weights, white, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    before = contents(tmp_path)
    words = (
        "The delta was made for 'sam-tiny-test' weights with fingerprint",
        "load the weights it was trained on",
    )
    delta = run / "delta.safetensors"
    segment = ("segment", white, *BOX, "--out", tmp_path / "m.png", "--weights", other_weights)
    medvfm("evaluate", "--run", run, "--weights", other_weights).refused(*words, code=1)
    medvfm(*segment, "--run", run).refused(*words, code=1)
    medvfm(*segment, "--delta", delta).refused(*words, code=1)
    medvfm("weights", "export", delta, "--file", other_weights).refused(*words, code=1)
    assert contents(tmp_path) == before


def test_a_delta_that_is_none(medvfm, trained, weight_files, white, tmp_path):
    data = (trained / "delta.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-7])
    (tmp_path / "text.safetensors").write_text("hello")
    before = contents(tmp_path)
    words = ("segment", white, *BOX, "--out", tmp_path / "m.png", "--delta")
    medvfm(*words, tmp_path / "no.safetensors").refused("no such file", code=1)
    medvfm(*words, tmp_path / "cut.safetensors").refused("cannot be read as safetensors", code=1)
    medvfm(*words, tmp_path / "text.safetensors").refused("cannot be read as safetensors", code=1)
    medvfm(*words, weight_files[SAM]).refused("is a safetensors file but no delta", code=1)
    medvfm("weights", "export", tmp_path / "no.safetensors").refused("does not exist", code=1)
    assert contents(tmp_path) == before


def test_a_run_directory_somebody_else_writes_to(medvfm, trained, cells, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with run_directory.locked(run):
        before = contents(run)
        medvfm(*adapt_words(cells, run), "--resume").refused("is writing to", "wait for it to end", code=1)
        assert contents(run) == before


def test_converted_and_exported_files_replace_nothing_unless_asked(medvfm, weight_files, trained, tmp_path):
    source = tmp_path / "source.safetensors"
    shutil.copyfile(weight_files[SAM], source)
    (tmp_path / "mine.safetensors").write_text("mine")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("mine")
    before = contents(tmp_path)
    convert, export = ("weights", "convert", source, "--to", SAM), ("weights", "export", trained)
    mine = ("--out", tmp_path / "mine.safetensors")
    medvfm(*convert, *mine).refused("mine.safetensors exists; add --overwrite to replace it", code=2)
    medvfm(*export, *mine).refused("mine.safetensors exists; add --overwrite to replace it", code=2)
    peft = ("--format", "peft", "--out", tmp_path / "peft")
    medvfm(*export, *peft).refused("adapter_config.json exists; add --overwrite", code=2)
    medvfm(*convert, "--out", source, "--overwrite").refused(
        "is the file to convert; choose another --out", code=2
    )
    medvfm(*convert, "--out", tmp_path / "peft").refused("peft is a folder, a file was expected", code=2)
    assert contents(tmp_path) == before
    assert medvfm(*convert, *mine, "--overwrite", "--json").json["model"] == SAM
    converted = (tmp_path / "mine.safetensors").read_bytes()
    assert converted == source.read_bytes()
    assert medvfm(*export, *mine, "--overwrite").code == 0
    assert (tmp_path / "mine.safetensors").read_bytes() != converted
