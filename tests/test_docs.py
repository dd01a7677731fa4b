"""The commands in the guides exist and take the options they are shown with; the Python in the README runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from medvfm_jax.cli.main import COMMANDS, GLOBAL_FLAGS, parse

ROOT = Path(__file__).parent.parent
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tpu/README.md"]


def commands():
    for guide in GUIDES:
        for block in re.findall(r"```bash\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("medvfm "):
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{guide.stem}: {line[:60]}")


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
        t for guide in GUIDES for t in re.findall(r"`?make ([a-z-]+)", guide.read_text(encoding="utf-8"))
    }
    assert {"quickstart", "test"} <= named <= targets


def test_the_python_of_the_readme_differentiates():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    import jax
    import jax.numpy as jnp

    from medvfm_jax import models
    from medvfm_jax.types import Prompts

    model = models.build("lite-tiny-test")
    tiny = f"{code}".replace('mv.load("lite-medsam")', "given")
    scope = {"given": (model, model.init(jax.random.key(1)))}
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


def test_the_python_of_the_adapter_guide_gives_a_working_adapter():
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "docs/own-adapter.md").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    scope = {}
    exec(compile(code, "own-adapter.md", "exec"), scope)
    assert scope["delta"]["gate"]
    assert all(path.endswith("/mlp") for path in scope["delta"]["gate"])


def test_the_guide_for_hospitals_counts_the_words_that_a_failing_site_may_say():
    from medvfm_jax.federated.network.site import REASONS

    number = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[len(REASONS)]
    guide = (ROOT / "docs/hospital.md").read_text(encoding="utf-8")
    assert f"the coordinator gets one of {number} words" in guide
    listed = re.search(r"The coordinator sees one of:(.*?)\.\n", guide, re.DOTALL)[1]
    assert len(re.findall(r"\*[^*]+\*", listed)) == len(REASONS)
