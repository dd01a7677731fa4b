"""The commands in the guides exist and take the options they are shown with; the Python in README and guides runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from medvfm_jax.cli.main import COMMANDS, GLOBAL_FLAGS, parse

ROOT = Path(__file__).parent.parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tpu/README.md"]


DEVICE = ROOT / "experiments/device/README.md"
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.py"))


def commands():
    for guide in GUIDES:
        for block in re.findall(r"```bash\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("medvfm "):
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{guide.stem}: {line[:60]}")
    for line in re.findall(r"`medvfm (.*?)`", DEVICE.read_text(encoding="utf-8")):
        yield pytest.param(shlex.split(line), id=f"device: {line[:60]}")
    for tutorial in TUTORIALS:
        for line in re.findall(r"^# `medvfm (.*?)`", tutorial.read_text(encoding="utf-8"), re.MULTILINE):
            yield pytest.param(shlex.split(line), id=f"{tutorial.stem}: {line[:60]}")


@pytest.mark.parametrize("arguments", commands())
def test_a_command_in_a_guide_parses(arguments):
    name, *rest = [word for word in arguments if word not in GLOBAL_FLAGS]
    assert name in COMMANDS
    arguments_type = getattr(
        importlib.import_module(f"medvfm_jax.cli.options.{name}"), f"{name.capitalize()}Args"
    )
    assert parse(arguments_type, rest, f"medvfm {name}") is not None


def test_make_targets_in_the_guides_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        t
        for guide in GUIDES
        for t in re.findall(r"(?:`|^)make ([a-z-]+)", guide.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"quickstart", "test"} <= named <= targets


def test_the_python_of_the_readme_differentiates():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    import jax
    import jax.numpy as jnp

    from medvfm_jax.types import Prompts
    from medvfm_jax.weights import load

    tiny = f"{code}".replace('mv.load("lite-medsam")', "given")
    scope = {"given": load("lite-tiny-test")}
    exec(compile(tiny, "README.md", "exec"), scope)
    box = Prompts(jnp.array([[[4.0, 5.0], [20.0, 22.0]]]), jnp.array([[2, 3]]))
    mask = jnp.zeros((1, 32, 32)).at[:, 5:20, 5:20].set(1)
    batch = (
        jnp.ones((2, 32, 32, 3)),
        jax.tree.map(lambda x: jnp.stack([x, x]), box),
        jnp.stack([mask, mask]),
    )
    two = jax.tree.map(lambda x: jnp.stack([x, x]), scope["delta"])
    norms = [float(jnp.abs(g).max()) for g in jax.tree.leaves(jax.jit(scope["cohort"])(two, *batch))]
    assert max(norms) > 0


def python_of(guide: str) -> str:
    """All Python of a guide, in order."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / guide).read_text(encoding="utf-8"), re.DOTALL
    )
    return "\n".join(blocks)


def run(guide: str) -> dict:
    """Names that the Python of a guide leaves behind."""
    scope = {"__name__": "guide"}
    exec(compile(python_of(guide), guide, "exec"), scope)
    return scope


def test_every_guide_with_python_is_run_here():
    tested = {
        "own-adapter",
        "own-system",
        "own-model",
        "own-algorithm",
        "own-codec",
        "own-dataset",
        "peft-file",
        "prompting",
        "images-and-texts",
        "volumes",  # in tests/adapters/test_depth_attention.py
    }
    assert {
        guide.stem for guide in GUIDES[1:-1] if "```python" in guide.read_text(encoding="utf-8")
    } == tested


@pytest.mark.slow
def test_the_guide_to_texts_gives_shares_of_each_image(monkeypatch):
    import medvfm_jax
    from medvfm_jax.weights import load

    monkeypatch.setattr(medvfm_jax, "load", lambda name, file: load("clip-tiny-test"), raising=False)
    ids = "token_ids = [[38, 20, 39], [38, 30, 39]]"  # of the tiny vocabulary
    code = re.sub(r"token_ids = \[.*", ids, python_of("images-and-texts.md"))
    scope = {"__name__": "guide"}
    exec(compile(code, "images-and-texts.md", "exec"), scope)
    assert scope["shares"].shape == (1, 2)
    assert float(scope["shares"].sum()) == pytest.approx(1.0)


def test_the_adapter_guide_gives_a_working_adapter():
    scope = run("own-adapter.md")
    assert scope["delta"]["gate"]
    assert all(path.endswith("/mlp") for path in scope["delta"]["gate"])


def test_the_system_guide_gives_a_delta_of_its_parts():
    delta = run("own-system.md")["delta"]
    assert all(path.endswith("/attn/proj") for path in delta["lora"])
    assert {site["a"].shape[-1] for site in delta["lora"].values()} == {8}
    assert {name for site in delta["decoder"].values() for name in site} == {"bias"}


def test_the_model_guide_gives_logits_and_an_adapter_that_is_the_identity_at_start():
    import numpy as np

    scope = run("own-model.md")
    assert scope["logits"].shape == (4, 2, 32, 32)
    plain = scope["model"].apply(scope["params"], scope["images"][0], None).logits
    np.testing.assert_allclose(scope["logits"][0], plain, atol=1e-6)


def test_the_majority_of_the_algorithm_guide_wins():
    """Steps of 0.1 from 0 reach (1, 2) exactly and then stay within one step of it."""
    import numpy as np

    np.testing.assert_allclose(run("own-algorithm.md")["server"].delta, [1.0, 2.0], atol=0.11)


def test_the_codec_guide_sends_half_the_bits_and_rounds_to_half_precision():
    scope = run("own-codec.md")
    assert scope["codecs"].bits(scope["half"], scope["update"]) == 16 * 109
    assert 0 < float(abs(scope["received"]["a"] - scope["update"]["a"]).max()) < 2**-11


@pytest.mark.slow
def test_the_prompting_guide_finds_masks():
    scope = run("prompting.md")
    assert scope["first"].iou.shape == (1, 3)
    assert scope["second"].labels.shape == (48, 64)
    assert scope["labels"].shape == (48, 64)
    assert scope["rows"][0]["number"] == 1


def test_the_dataset_guide_gives_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = run("own-dataset.md")["batch"]
    assert batch.image.shape == (2, 32, 32, 3)
    assert batch.target.shape == (2, 2, 32, 32)


def test_the_peft_guide_reads_what_was_written(tmp_path, monkeypatch):
    """Merged kernels are W + 0.5 a b."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    scope = run("peft-file.md")
    path = "image_encoder/blocks_0/attn/qkv"
    before, after = scope["params"]["params"], scope["merged"]["params"]
    for name in path.split("/"):
        before, after = before[name], after[name]
    made = scope["made"][path]
    np.testing.assert_allclose(
        after["kernel"], before["kernel"] + 0.5 * made.a @ made.b, rtol=1e-5, atol=1e-5
    )


def test_the_guide_for_hospitals_counts_the_words_that_a_failing_site_may_say():
    from medvfm_jax.federated.network.site import REASONS

    number = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[len(REASONS)]
    guide = (ROOT / "docs/hospital.md").read_text(encoding="utf-8")
    assert f"the coordinator gets one of {number} words" in guide
    listed = re.search(r"The coordinator sees one of:(.*?)\.\n", guide, re.DOTALL)[1]
    assert len(re.findall(r"\*[^*]+\*", listed)) == len(REASONS)
