"""Help and a misspelled option import no JAX, so that they are there at once."""

import subprocess
import sys

import pytest

from medvfm_jax.cli.main import COMMANDS

HEAVY = (
    "jax",
    "flax",
    "numpy",
    "optax",
    "grain",
    "nibabel",
    "scipy",
    "medvfm_jax.models",
    "medvfm_jax.train",
)
ASK = """
import sys
from medvfm_jax.cli.main import main
code = main(sys.argv[2:])
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
print("LOADED", code, *loaded)
"""


def loaded_by(*words):
    run = subprocess.run(
        [sys.executable, "-c", ASK, ",".join(HEAVY), *words], capture_output=True, text=True, check=True
    )
    return run.stdout.rpartition("LOADED")[2].split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    assert loaded_by(command, "--help") == ["0"]


def test_a_misspelled_option_imports_nothing_heavy():
    assert loaded_by("adapt", "--dta", "d") == ["2"]
