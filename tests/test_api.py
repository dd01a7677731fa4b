"""The promise of the first screen: names exist at the top, and importing pulls in neither torch nor TensorFlow."""

import subprocess
import sys

import medvfm_jax as mv


def test_what_the_readme_uses_exists():
    for path in (
        "load",
        "adapters.lora",
        "adapters.chain",
        "adapters.tune",
        "losses.dice_ce",
        "types.Prompts",
    ):
        target = mv
        for name in path.split("."):
            assert hasattr(target, name), path
            target = getattr(target, name)


def test_import_loads_no_other_framework():
    code = "import sys, medvfm_jax; print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
